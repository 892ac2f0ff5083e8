"""Reading the layers a configuration is made of: YAML files, their `base:` chains and command-line overrides.

What a YAML file or an option gives is plain values, or a clear error: null, true and false, numbers of 64 bits, text,
lists, and sections with text as keys. So everything after `plain` meets no dates, bytes, paths or sets from typed YAML
tags, no text that no file name, terminal or file can hold, no interpolation that cannot be parsed, no endless nesting.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite.config.sections import settings_of_others
from lavis_lite.errors import ConfigError, did_you_mean, listed, shown

DEEPEST = 40
"""sections within sections"""


def plain(value: Any, where: str, key: str = "", depth: int = 0, resolved: bool = False) -> Any:
    """The same value, with text as keys.

    Args:
        value: as a YAML reader gives it.
        where: file or option that it comes from, for messages.
        key: its dotted key.
        depth: of sections around it.
        resolved: whether interpolations are filled in, so that "${" is text like any other.

    Raises:
        ConfigError: a value that is not plain; names where it is.
    """
    if depth > DEEPEST:
        raise _refused(where, key[:80], f"is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {_key(name, where, key): plain(inner, where, f"{key}.{name}".lstrip("."), depth + 1, resolved)
                for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, where, f"{key}.{position}", depth + 1, resolved) for position, inner in enumerate(value)]
    problem = _problem(value, resolved)
    if problem:
        raise _refused(where, key, problem)
    return value


def _key(name: Any, where: str, parent: str) -> str:
    if not isinstance(name, str | int | float | None):  # YAML reads `1:`, `on:` and `null:` as other than text
        raise _refused(where, parent, f"has the key {shown(name)}, which is not text")
    text = str(name)
    problem = _text_problem(text)
    if problem or "${" in text:
        raise _refused(where, parent, f"has the key {shown(text)}, which {problem or 'has an interpolation in it'}")
    return text


def _problem(value: Any, resolved: bool) -> str:
    """What is wrong with a single value, as the end of a sentence; "" when nothing is."""
    if isinstance(value, str):
        return _text_problem(value) or ("" if resolved else _interpolation_problem(value))
    if isinstance(value, int) and not -2**63 <= value < 2**63:
        return f"is a number of more than 64 bits ({shown(value)})"
    if value is None or type(value) in (bool, int, float):
        return ""
    return f"is a {type(value).__name__}, not a plain value; put it in quotes to make it text"


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "has a null character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "has half of a surrogate pair, or a byte that is not text in this locale (PYTHONUTF8=1 reads UTF-8)"
    return ""


def _interpolation_problem(text: str) -> str:
    if "${" not in text:
        return ""
    try:
        OmegaConf.create({"value": text})
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        return f"is not an interpolation ({reason}): {shown(text)}; write \\${{ for a dollar sign and a brace"
    return ""


def _refused(where: str, key: str, problem: str) -> ConfigError:
    position = f"{where}: {key[:200]}" if key else where
    return ConfigError(f"{position} {problem}.")


YAML_ERRORS = (yaml.YAMLError, OmegaConfBaseException, ValueError, KeyError, TypeError, AttributeError, OverflowError,
               RecursionError, OSError)
"""exceptions of OmegaConf and PyYAML for text that is not YAML, the last five for scalars that do not fit their tag"""
SECTIONS = ("model", "preprocess", "datasets", "run", "imports", "configs", "base")
LISTS = ("imports", "configs")
"""sections that are lists, not keys"""
OPTIONS = "--options"
_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = next((folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent) if (folder / "projects").is_dir()),
               _PACKAGE)
"""folder of `projects/`; modules of recipes are imported from there as `projects.NAME`"""


@dataclass(frozen=True)
class Layer:
    """One source of settings; `name` is its name in messages and --print-config."""

    name: str
    content: dict[str, Any]


def read_yaml(path: Path, wanted_by: str = "") -> dict[str, Any]:
    """One YAML file as plain containers (interpolations kept as text).

    Raises:
        ConfigError: missing, unreadable, not YAML, or not a mapping; the message names the file and, if known, the
            line.
    """
    try:
        _require_file(path, wanted_by)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8 text, or a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{shown(str(path), 1000)}: cannot be read{wanted_by} ({reason}).") from error
    content = _parsed(text, str(path))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}: the file must hold the sections {', '.join(SECTIONS)}, not a {kind}.")
    return content


def _require_file(path: Path, wanted_by: str) -> None:
    """Raise a ConfigError with a hint if a path is a folder or missing."""
    if os.path.isdir(path):  # unlike Path.is_dir, no error of a name that is too long
        inside = sorted(other.name for other in path.glob("*.yaml"))
        named = f" in it: {listed(inside)}" if inside else ""
        raise ConfigError(f"{path} is a folder{wanted_by}; give a YAML file{named}.")
    if not os.path.isfile(path):
        siblings = [other.name for other in path.parent.glob("*.yaml")] if os.path.isdir(path.parent) else []
        hint = f" In {path.parent}: {did_you_mean(path.name, siblings)}" if siblings else ""
        raise ConfigError(f"{path}: no such file{wanted_by}.{hint}")


def _parsed(text: str, where: str) -> Any:
    """The plain containers of a YAML text, interpolations kept as text."""
    try:
        content = _read(text)
    except YAML_ERRORS as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be read as YAML: {reason[:400]}") from error
    return plain(content, where)  # containers of its own


@functools.lru_cache(maxsize=256)
def _read(text: str) -> Any:
    """As `_parsed`, shared: a composition reads bases and model types again and again, and parsing takes longest."""
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def base_chain(path: Path) -> list[Layer]:
    """The run YAML preceded by what its `base:` names, farthest ancestor first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    wanted_by = ""
    while True:
        resolved = path.resolve()
        if resolved in seen:
            chain = " -> ".join(step.name for step in [*seen, resolved])
            raise ConfigError(f"{path}: the base: chain is circular: {chain}.")
        seen.append(resolved)
        content = read_yaml(path, wanted_by)
        base = content.pop("base", None)
        if "configs" in content:
            content["configs"] = _beside(path, content["configs"])
        layers.insert(0, Layer(str(path), content))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base must be one file name, not {base!r}.")
        wanted_by = f" (named by base: in {path})"
        path = _base_file(path.parent, base)


def _base_file(folder: Path, base: str) -> Path:
    """The file that `base:` names: in the folder of its file, or a recipe of the package (`projects/...`)."""
    own = folder / base
    if os.path.isfile(own):
        return own
    return RECIPES / base if os.path.isfile(RECIPES / base) else own


def _beside(path: Path, folders: Any) -> Any:
    """The absolute paths of the folders of `configs:`, which are relative to their file."""
    listed = [folders] if isinstance(folders, str) else folders
    if not isinstance(listed, list) or not all(isinstance(folder, str) for folder in listed):
        return folders  # reported with the other sections' shapes
    return [str((path.parent / Path(folder).expanduser()).absolute()) for folder in listed]


def section_errors(layers: Sequence[Layer], allowed: Sequence[str] = SECTIONS) -> list[str]:
    """Errors of top-level keys that are not sections, and of sections with a wrong shape."""
    errors = []
    for layer in layers:
        for key, content in layer.content.items():
            if key not in allowed:
                errors.append(f"{layer.name}: unknown section {shown(key)}; {did_you_mean(key, allowed)}")
            elif problem := _shape_problem(key, content):
                errors.append(f"{layer.name}: {problem}")
    return errors


def _shape_problem(key: str, content: Any) -> str:
    """The error in a section's shape; "" if it is right."""
    if content is None:
        return ""
    if key == "imports":
        named = isinstance(content, list) and all(map(_is_module_name, content))
        return "" if named else f"imports: must be a list of modules, such as [my_plugin], not {shown(content)}."
    if key == "configs":
        named = isinstance(content, list) and all(isinstance(folder, str) for folder in content)
        return "" if named else f"configs: must be a folder or a list of folders, not {shown(content)}."
    if not isinstance(content, Mapping):
        return f"{key}: must be a section of keys, not {shown(content)}."
    for name, section in content.items() if key == "datasets" else ():
        if section is not None and not isinstance(section, Mapping):
            return f"datasets.{name}: must be a section of keys, not {shown(section)}."
    return ""


def _is_module_name(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def parse_options(options: Sequence[str]) -> Layer:
    """`a.b=c` items, or LAVIS' alternating `a.b c` items, as one layer.

    Raises:
        ConfigError: an argument has no value, or a key is not `section.key`.
    """
    content: dict[str, Any] = {}
    for key, text in _pairs(list(options)):
        plain(key, OPTIONS, key[:80])
        parts = key.split(".")
        if parts[0] not in SECTIONS or (len(parts) < 2 and parts[0] not in LISTS):
            hint = ("this is a whole section." if parts[0] in SECTIONS else
                    f"instead of {parts[0]!r}, {did_you_mean(parts[0], SECTIONS[:4])}")
            raise ConfigError(f"{OPTIONS} {key}={text}: a key is section.name; {hint}")
        inner = content
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{OPTIONS} {key}: {part} was set to a plain value by another option.")
        inner[parts[-1]] = plain(parse_value(text), OPTIONS, key)
    if "configs" in content:
        content["configs"] = _beside(Path.cwd() / OPTIONS, content["configs"])
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
    """A value of the command line by YAML's rules (1e-5 is a number); text that is not YAML stays text."""
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


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """All layers merged (later wins) and, per dotted key, the name of the layer that set it.

    A data set with the section null is removed, so a derived YAML can drop a data set of its base. A layer that names
    another connector or processor drops the former one's settings; a processor keeps the sizes of pictures and clips.
    """
    merged: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    for layer in layers:
        content = {key: named_hooks(section) if key == "run" else section for key, section in layer.content.items()}
        for left in settings_of_others(merged, content):
            merged = without(merged, [left])
            provenance = {key: name for key, name in provenance.items() if not f"{key}.".startswith(f"{left}.")}
        _overlay(merged, content)
        for key, _ in flatten(content):
            provenance[key] = layer.name
    datasets = merged.get("datasets")
    if isinstance(datasets, dict):
        merged["datasets"] = {name: section for name, section in datasets.items() if section is not None}
    return merged, provenance


def named_hooks(run: Any) -> Any:
    """A `run:` section with its `hooks` as a mapping; a list of names, or of one-key sections, is converted.

    Raises:
        ConfigError: an entry of the list is neither a name nor a one-key section.
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


def unset_keys(layers: Sequence[Layer]) -> set[str]:
    """Dotted keys that a layer sets to null over the value of a lower layer."""
    given: set[str] = set()
    unset: set[str] = set()
    for layer in layers:
        for key, value in flatten(layer.content):
            if value is not None:
                given.add(key)
                unset.discard(key)
            elif any(other == key or other.startswith(f"{key}.") for other in given):
                unset.add(key)
    return unset


def without(content: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A copy of nested sections without some dotted keys."""
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for dotted in keys:
        first, _, rest = dotted.partition(".")
        if rest and isinstance(copy.get(first), dict):
            copy[first] = without(copy[first], [rest])
        elif not rest:
            copy.pop(first, None)
    return copy


def over(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections with changes on top, as a layer lies on another; both stay as they are."""
    result: dict[str, Any] = {}
    for layer in (content, changes):
        _overlay(result, layer)
    return result


def _overlay(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _overlay(target[key], value)
        elif isinstance(value, Mapping):
            target[key] = {}
            _overlay(target[key], value)
        else:
            target[key] = value
