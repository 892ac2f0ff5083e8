"""Configurations by name: model types and data sets of the package and of added folders.

A folder of configurations has `models/<arch>/<type>.yaml` and `datasets/<name>.yaml`. Besides the package's own there
are those of `configs:` in a YAML, `registry.register_path("configs", folder)` and the variable LAVIS_LITE_CONFIGS.

A layer may name another task or arch than the layers below it: `without_keys_of_others` drops their keys. So a recipe
of one task can be the `base:` of another's, and a run of one task can be evaluated as another.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lavis_lite.config.lavis_keys import type_of_files, without_row
from lavis_lite.config.layers import Layer, base_chain, merge, over, read_yaml, section_errors
from lavis_lite.config.schema import ModelConfig, OpenSection, RunConfig
from lavis_lite.errors import ConfigError, RegistryError, did_you_mean
from lavis_lite.registry import Registry, load_plugins, registry

CONFIGS = Path(str(resources.files("lavis_lite") / "configs"))
FOLDERS_VARIABLE = "LAVIS_LITE_CONFIGS"
"""environment variable: more folders of configurations, separated as in PATH"""
MODEL_CONFIG_HOME = {"blip2_feature_extractor": "blip2", "blip2_image_text_matching": "blip2"}
"""archs that share another arch's files under configs/models"""
TYPES_TABLE = "PRETRAINED_MODEL_CONFIG_DICT"
"""attribute of a class: type -> YAML"""


def _yaml_files(kind: str) -> dict[str, Path]:
    """name -> file below `kind` ("datasets", "models/blip2") of all folders of configurations.

    Raises:
        ConfigError: a name is in two folders, or the variable names a folder that does not exist.
    """
    more = [Path(text).expanduser() for text in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if text]
    if missing := [str(folder) for folder in more if not os.path.isdir(folder)]:
        raise ConfigError(f"environment: {FOLDERS_VARIABLE}: there is no folder {missing[0]}.")
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(path.resolve() for path in (CONFIGS, *more, *registry.config_folders)):
        home = folder / kind
        for name in sorted(os.listdir(home)) if os.path.isdir(home) else ():  # much faster than Path.glob
            stem, kind_of_file = os.path.splitext(name)
            if kind_of_file != ".yaml":
                continue
            if stem in found:
                raise ConfigError(f"{home / name}: the name {stem!r} is taken by {found[stem]}; rename the file.")
            found[stem] = home / name
    return found


def _layer_name(path: Path) -> str:
    """A file's name in messages: relative to the package, or its whole path."""
    path, home = path.resolve(), CONFIGS.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


# models ---------------------------------------------------------------------------------------------------------------
def model_types(arch: str) -> dict[str, Path]:
    """model_type -> its YAML, of all configuration folders and of the class's PRETRAINED_MODEL_CONFIG_DICT.

    A user's class without such a table has the types of the packaged class that it derives from.

    Raises:
        RegistryError: unknown arch.
    """
    types = _yaml_files(f"models/{MODEL_CONFIG_HOME.get(arch, arch)}")
    if arch in registry.model.builtins and not registry.model.is_own(arch):
        return types
    cls = registry.get_model_class(arch)
    if getattr(cls, TYPES_TABLE, None) is not None:
        return types | _listed(cls, TYPES_TABLE)
    parent = next(filter(None, map(registry.model.builtin_name, cls.__mro__)), None)
    inherits = parent and issubclass(_section(registry.model, arch, ModelConfig),
                                     _section(registry.model, parent, ModelConfig))
    return model_types(parent) | types if parent and inherits else types


def _listed(cls: type, table: str) -> dict[str, Path]:
    """type -> YAML of a class's own table: relative to its module, or where its `locate_config` finds it."""
    home = Path(sys.modules[cls.__module__].__file__ or ".").parent
    locate = getattr(cls, "locate_config", home.joinpath)
    return {name: Path(locate(path)) for name, path in getattr(cls, table, {}).items()}


def model_layers(arch: str, model_type: str, is_named: bool = True) -> tuple[list[Layer], list[str]]:
    """(the layers of a model type, its `base:` first; errors). A class without types has no layer.

    Args:
        arch: of the model.
        model_type: one of its types.
        is_named: whether a section names it. A class that inherits its table of types needs none.
    """
    try:
        types = model_types(arch)
        if model_type not in types:
            load_plugins()
            types = model_types(arch)
    except RegistryError as error:
        return [], [f"model.arch: {error}{_archs_with(arch.removeprefix('instruct_'))}"]
    if not types or not (is_named or model_type in types or _has_own_types(arch)):
        return [], []
    if model_type not in types:
        return [], [f"model.model_type: {arch} has no type {model_type!r}; {did_you_mean(model_type, types)}"
                    f"{_archs_with(model_type)}"]
    layers = [Layer(_layer_name(Path(layer.name)), layer.content) for layer in base_chain(types[model_type].resolve())]
    errors = section_errors(layers, ("model", "preprocess"))
    return ([] if errors else layers), errors


def _has_own_types(arch: str) -> bool:
    return arch in registry.model.builtins or TYPES_TABLE in vars(registry.get_model_class(arch))


def type_content(arch: str, model_type: str) -> dict[str, Any]:
    """Sections `model` and `preprocess` of a model type, over those of its `base:`.

    Raises:
        ConfigError: there is no such type, or its files do not fit.
    """
    layers, errors = model_layers(arch, model_type)
    if errors:
        raise ConfigError(errors[0])
    return merge(layers)[0]


def _archs_with(model_type: str) -> str:
    """A clause that names the package's archs with a type of that name, or ""."""
    archs = [arch for arch in sorted(registry.model.builtins)
             if MODEL_CONFIG_HOME.get(arch, arch) == arch and model_type in model_types(arch)]
    return f" {model_type!r} is a type of {' and '.join(archs)}." if archs else ""


# data sets ------------------------------------------------------------------------------------------------------------
def dataset_files() -> dict[str, Path]:
    """name -> the file of its rows."""
    return _yaml_files("datasets")


def dataset_names() -> list[str]:
    """Data sets with a file in a configuration folder; loads installed plugins."""
    load_plugins()
    return sorted(dataset_files())


def dataset_rows(name: str) -> dict[str, Any]:
    """type -> section of a named data set.

    A file has sections by type; a type may be another one with changes, {as: <type>, ...}. It may begin with `base:
    <other data set>`: the types of that one with `changes` over each. LAVIS' layout, {datasets: {name: section}}, is
    one type `default`.

    Raises:
        ConfigError: the file cannot be read, or its `base` is unknown.
    """
    return _rows(name, dataset_files()[name])


def _rows(name: str, path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if isinstance(content.get("datasets"), Mapping):
        content = {"default": content["datasets"].get(name)}
    base, changes = content.pop("base", None), content.pop("changes", None) or {}
    rows: dict[str, Any] = {}
    if base is not None:
        files = dataset_files()
        if base not in files:
            hint = did_you_mean(str(base), dataset_names())
            raise ConfigError(f"{path}: base: there is no data set {base!r}; {hint}")
        rows = {kind: over(row, changes) for kind, row in _rows(base, files[base]).items()}
    for kind, row in content.items():
        if not isinstance(row, Mapping):
            raise ConfigError(f"{path}: {kind}: must be a section, as every type of a data set is (or `base` with "
                              "`changes`).")
    rows |= content
    for kind, row in rows.items():
        if "as" in row:  # another name of a type, with changes
            changes = {key: value for key, value in row.items() if key != "as"}
            rows[kind] = over(rows[row["as"]], changes)
    return rows


def _rows_of_builder(name: str, wanted: str) -> dict[str, Any] | None:
    """type -> section by LAVIS' DATASET_CONFIG_DICT of a user's builder class; None if it has none.

    Files that are not there are left out, but for that of the type `wanted`.
    """
    if not registry.builder.is_own(name):
        return None
    listed = _listed(registry.get_builder_class(name), "DATASET_CONFIG_DICT")
    rows = {kind: _rows(name, path) for kind, path in listed.items() if path.is_file() or kind == wanted}
    return {kind: own.get(kind, own.get("default")) for kind, own in rows.items()} or None


def dataset_layer(name: str, section: Mapping[str, Any]) -> tuple[list[Layer], list[str]]:
    """(the default layer of a data set if it has one, errors of its name or type)."""
    files = dataset_files()
    if name not in files:
        load_plugins()
        files = dataset_files()
    path = None if registry.builder.is_own(name) else files.get(name)  # a user's class before a row
    rows = (_rows(name, path) if path is not None
            else _rows_of_builder(name, str(section.get("type") or "default")))
    if rows is None:
        if section.get("builder") or name in registry.builder:
            return [], []
        if why := without_row(name):
            return [], [f"datasets.{name}: {why}"]
        return [], [f"datasets.{name}: neither a named data set nor a registered builder; "
                    f"{did_you_mean(name, [*dataset_names(), *registry.builder.names()])} "
                    "For your own files add `builder: custom`."]
    of_arrays = "features" if section.get("data_type") == "features" and "features" in rows else ""
    kind = str(section.get("type") or of_arrays or type_of_files(section.get("files", ()), rows))
    if kind not in rows:
        return [], [f"datasets.{name}.type: no type {kind!r}; {did_you_mean(kind, rows)}"]
    where = _layer_name(path) if path is not None else f"builder {name}"
    named = {} if section.get("type") or kind == "default" else {"type": kind}
    row = dict(rows[kind])
    if section.get("only_shards"):  # the user's place beats the packaged one, which has another key
        row["build_info"] = {key: value for key, value in row["build_info"].items() if key != "annotations"}
    return [Layer(where, {"datasets": {name: {**row, **named}}})], []


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
    any_key = issubclass(_section(kind, chosen, base), OpenSection)  # there, null is a value like any other
    notes = []
    for index, layer in enumerate(layers):
        content = layer.content.get(section)
        if not isinstance(content, dict):
            continue
        former_keys = [name for name in content if name in theirs]
        dropped = [name for name in former_keys if index < choice or (content[name] is None and not any_key)]
        kept = {name: value for name, value in content.items() if name not in dropped}
        layers[index] = Layer(layer.name, {**layer.content, section: kept})
        if dropped and index < choice:
            notes.append(f"{layer.name}: {', '.join(f'{section}.{name}' for name in dropped)}: without effect, as "
                         f"{layers[choice].name} sets {section}.{key} to {chosen}.")
    return layers, notes


def _fields(kind: Registry[Any], name: Any, base: type) -> set[str]:
    """Keys of a registered class's section; for an unknown class, the common keys."""
    return {field.name for field in dataclasses.fields(_section(kind, name, base))}


def _section(kind: Registry[Any], name: Any, base: type) -> type:
    """The section of a registered class; for an unknown class, that of all."""
    try:
        return kind.section_of(name) or base
    except RegistryError:  # composing reports the name
        return base
