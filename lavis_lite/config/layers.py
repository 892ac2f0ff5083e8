"""Reading the layers a configuration is made of: YAML files, their `base:` chains and command-line overrides."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite.config.plain import plain
from lavis_lite.errors import ConfigError, did_you_mean, shown

YAML_ERRORS = (yaml.YAMLError, OmegaConfBaseException, ValueError, KeyError, TypeError, AttributeError, OverflowError,
               RecursionError, OSError)
"""what OmegaConf and PyYAML raise for a text that is no YAML, the last five for scalars that do not fit their tag"""
SECTIONS = ("model", "preprocess", "datasets", "run", "imports", "base")
OPTIONS = "--options"


@dataclass(frozen=True)
class Layer:
    """One source of settings; `name` is what messages and --print-config call it."""

    name: str
    content: dict[str, Any]


def read_yaml(path: Path, wanted_by: str = "") -> dict[str, Any]:
    """One YAML file as plain containers (interpolations kept as text).

    Raises:
        ConfigError: missing, unreadable, not YAML, or not a mapping; names the file and the line where known.
    """
    try:
        _require_file(path, wanted_by)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as fault:  # ValueError: no UTF-8 text, or a null character in the name
        reason = getattr(fault, "strerror", None) or fault
        raise ConfigError(f"{shown(str(path), 1000)}: cannot be read{wanted_by} ({reason}).") from fault
    content = _parsed(text, str(path))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}: the file must hold the sections {', '.join(SECTIONS)}, not a {kind}.")
    return content


def _require_file(path: Path, wanted_by: str) -> None:
    """Raise a ConfigError that helps where a path is a folder or nothing."""
    if path.is_dir():
        inside = sorted(other.name for other in path.glob("*.yaml"))
        named = ", ".join(inside[:5]) + (f", ... ({len(inside)} in all)" if len(inside) > 5 else "")
        raise ConfigError(f"{path} is a folder{wanted_by}; give a YAML file{f' in it: {named}' if inside else ''}.")
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = f" In {path.parent}: {did_you_mean(path.name, siblings)}" if siblings else ""
        raise ConfigError(f"{path}: no such file{wanted_by}.{hint}")


def _parsed(text: str, where: str) -> Any:
    """The plain containers of a YAML text, interpolations kept as text."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except YAML_ERRORS as fault:
        reason = "it is nested too deeply" if isinstance(fault, RecursionError) else " ".join(str(fault).split())
        raise ConfigError(f"{where}: cannot be read as YAML: {reason[:400]}") from fault
    return plain(content, where)


def base_chain(path: Path) -> list[Layer]:
    """The run YAML preceded by what its `base:` names, farthest ancestor first; `base` is relative to its file."""
    layers: list[Layer] = []
    seen: list[Path] = []
    wanted_by = ""
    while True:
        resolved = path.resolve()
        if resolved in seen:
            chain = " -> ".join(step.name for step in [*seen, resolved])
            raise ConfigError(f"{path}: the base: chain goes in a circle: {chain}.")
        seen.append(resolved)
        content = read_yaml(path, wanted_by)
        base = content.pop("base", None)
        layers.insert(0, Layer(str(path), content))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base must be one file name, not {base!r}.")
        wanted_by = f" (wanted by base: in {path})"
        path = path.parent / base


def parse_options(options: Sequence[str]) -> Layer:
    """`a.b=c` items, or LAVIS' alternating `a.b c` items, as one layer.

    Raises:
        ConfigError: an odd argument is left over, or a key is not `section.key`.
    """
    content: dict[str, Any] = {}
    for key, text in _pairs(list(options)):
        plain(key, f"{OPTIONS} {shown(key)}")
        parts = key.split(".")
        if parts[0] not in SECTIONS or (len(parts) < 2 and parts[0] != "imports"):
            raise ConfigError(f"{OPTIONS} {key}={text}: a key is section.name, and for {parts[0]!r} "
                              f"{did_you_mean(parts[0], SECTIONS[:4])}")
        place = content
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{OPTIONS} {key}: {part} was set to a plain value by another option.")
        place[parts[-1]] = plain(parse_value(text), OPTIONS, key)
    return Layer(OPTIONS, content)


def _pairs(items: list[str]) -> Iterator[tuple[str, str]]:
    while items:
        item = items.pop(0)
        key, equals, value = item.partition("=")
        if not equals:
            if not items:
                raise ConfigError(f"{OPTIONS} {item}: no value given; write {item}=VALUE.")
            value = items.pop(0)
        yield key.strip(), value


def parse_value(text: str) -> Any:
    """A value of the command line, by YAML's rules (1e-5 is a number); text that is no YAML value stays text."""
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index,call-overload]
    except YAML_ERRORS:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text  # "Question: {} Answer:" is a prompt, not a mapping
    return value


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf."""
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value


def merge(layers: Sequence[Layer]) -> tuple[DictConfig, dict[str, str]]:
    """All layers into one (later wins) and, per dotted key, the name of the layer that set it.

    A data set whose section is null is removed: how a derived YAML drops one that its base lists.
    """
    merged: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    for layer in layers:
        content = {key: named_hooks(section) if key == "run" else section for key, section in layer.content.items()}
        _overlay(merged, content)
        for key, _ in flatten(content):
            provenance[key] = layer.name
    datasets = merged.get("datasets")
    if isinstance(datasets, dict):
        merged["datasets"] = {name: section for name, section in datasets.items() if section is not None}
    return OmegaConf.create(merged), provenance


def named_hooks(run: Any) -> Any:
    """A `run:` section of a YAML with its `hooks` as a mapping: a list of names, or of one-key sections, becomes one.

    Raises:
        ConfigError: an entry of the list is neither.
    """
    if not isinstance(run, Mapping) or not isinstance(run.get("hooks"), list):
        return run
    hooks: dict[str, Any] = {}
    for entry in run["hooks"]:
        if isinstance(entry, str):
            hooks[entry] = {}
        elif isinstance(entry, Mapping) and len(entry) == 1:
            name, given = next(iter(entry.items()))
            hooks[str(name)] = {} if given is None else given
        else:
            raise ConfigError(f"run.hooks: an entry is a name or {{name: arguments}}, not {entry!r}.")
    return {**run, "hooks": hooks}


def _overlay(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _overlay(target[key], value)
        elif isinstance(value, Mapping):
            target[key] = {}
            _overlay(target[key], value)
        else:
            target[key] = value
