"""Whether a section `model.connector` names a connector and settings that it has. Needs no torch for built-in ones."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_lite.errors import did_you_mean
from lavis_lite.registry import registry

SIZES = ("features", "feature_width", "width")
"""arguments that follow from the encoder and the language model; all others are keys of the section"""
_WORDS = {bool: "true or false", int: "a whole number of at least 1", float: "a number", str: "a text"}


def settings_of(name: str) -> dict[str, Any]:
    """Setting -> default of a registered connector, in the order of its class.

    Those of a built-in class are read from its source, because importing it imports torch.
    """
    target = registry.connector.builtins.get(name)
    if target is None:
        given = inspect.signature(registry.connector.get(name)).parameters
        return {key: one.default for key, one in given.items() if key not in SIZES}
    module, _, cls = target.partition(":")
    source = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
    body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == cls)
    arguments = next(node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {one.arg: ast.literal_eval(default) for one, default in
            zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is not None}


def settings_error(section: Mapping[str, Any]) -> tuple[str, str] | None:
    """(key of the model section, sentence) of a type or setting that does not exist, or a value of another kind."""
    settings = dict(section)
    name = settings.pop("type", None)
    names = registry.connector.names()
    if name not in names:
        given = "names no type" if name is None else f"there is no connector {name!r}"
        return "connector", f"{given}; {did_you_mean(str(name), names)}"
    known = settings_of(name)
    for key, value in settings.items():
        if key not in known:
            return f"connector.{key}", f"{name} has no such setting; {did_you_mean(key, known)}"
        kind = type(known[key])
        if kind in _WORDS and not _fits(value, kind):
            return f"connector.{key}", f"must be {_WORDS[kind]}, not {value!r}."
    return None


def _fits(value: Any, kind: type) -> bool:
    """Whether a value can stand for a default of a kind."""
    if kind is int:
        return type(value) is int and value >= 1
    return type(value) in ((int, float) if kind is float else (kind,))
