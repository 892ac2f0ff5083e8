"""Drops keys of a former task or arch if a higher layer chooses another one.

So a recipe of one task can be the `base:` of another's, and a run can be evaluated by another task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lavis_lite.config.layers import Layer
from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.errors import RegistryError
from lavis_lite.registry import Registry, registry


def without_keys_of_others(layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """Layers without the keys that only a former task or arch has, and one note for each layer that loses some.

    A key stays, and is an error if the chosen task lacks it, in the layer that makes the choice and in those above;
    there, null unsets it.
    """
    left, notes = list(layers), list[str]()
    for section, key, kind, base in (("run", "task", registry.task, RunConfig),
                                     ("model", "arch", registry.model, ModelConfig)):
        left, found = _without(left, section, key, kind, base)
        notes += found
    return left, notes


def _without(layers: list[Layer], section: str, key: str, kind: Registry[Any],
             base: type) -> tuple[list[Layer], list[str]]:
    default = getattr(base, key)
    named = [(index, default if layer.content[section][key] is None else layer.content[section][key])
             for index, layer in enumerate(layers) if key in (layer.content.get(section) or {})]
    if not named:
        return layers, []
    chosen = named[-1][1]
    others = [(index, name) for index, name in named if name != chosen]
    last = others[-1][0] if others else -1
    choice = next(index for index, name in named if index > last)
    former = [name for _, name in others] or [default]
    theirs = set[str]().union(*(_fields(kind, name, base) for name in former)) - _fields(kind, chosen, base)
    notes = []
    for index, layer in enumerate(layers):
        content = layer.content.get(section)
        if not isinstance(content, dict):
            continue
        former_keys = [name for name in content if name in theirs]
        dropped = [name for name in former_keys if index < choice or content[name] is None]  # null unsets
        kept = {name: value for name, value in content.items() if name not in dropped}
        layers[index] = Layer(layer.name, {**layer.content, section: kept})
        if dropped and index < choice:
            notes.append(f"{layer.name}: {', '.join(f'{section}.{name}' for name in dropped)}: without effect, as "
                         f"{layers[choice].name} sets {section}.{key} to {chosen}.")
    return layers, notes


def _fields(kind: Registry[Any], name: Any, base: type) -> set[str]:
    """Keys of a registered class's section; for an unknown class, the common keys."""
    try:
        section = kind.section_of(name) or base
    except RegistryError:  # composing reports the name
        section = base
    return {field.name for field in dataclasses.fields(section)}
