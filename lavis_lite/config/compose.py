"""Layers -> one checked `Config`.

Later layers win. In order: schema defaults, configs/models (by arch and model_type), configs/datasets (by name and
type), the `base:` chain of the run YAML, the run YAML, --options. Each registered class owns its part of the schema
through its `config_class`.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite import redaction
from lavis_lite.config import schema
from lavis_lite.config.lavis_keys import (
    file_names,
    note_unread_prompt,
    only_shards,
    references_of_run,
    translated,
    without_row,
)
from lavis_lite.config.layers import (
    RECIPES,
    Layer,
    base_chain,
    flatten,
    merge,
    parse_options,
    plain,
    section_errors,
    unset_keys,
    without,
)
from lavis_lite.config.named import dataset_layer, model_layers, without_keys_of_others
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, OpenSection, PreprocessConfig, RunConfig
from lavis_lite.config.typed import Checker
from lavis_lite.errors import ConfigError, ErrorList, RegistryError
from lavis_lite.registry import Registry, registry

SCHEMA_LAYER = "default"


class Composition:
    """A composed run.

    Attributes:
        tree: the merged layers, interpolations as written.
        provenance: dotted key -> name of the layer that set it.
        order: names of all layers; later ones win.
        unset: dotted keys that a layer set to null over another layer's value.
        named: dotted keys of the defaults of its model type and data sets.
        errors: its errors, one sentence each.
        config: the typed sections.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.tree, self.provenance = merge(layers)
        self.unset, self.order = unset_keys(layers), [layer.name for layer in layers]
        self.named: set[str] = set()
        self.errors: list[str] = []
        self.config = Config(ModelConfig(), PreprocessConfig(), {}, RunConfig())

    def where(self, key: str) -> str:
        """Name of the layer that set a key, the last of its children, or the value it is part of."""
        inside = [name for child, name in self.provenance.items() if child.startswith(key + ".")]
        if inside:
            return inside[-1]
        while key and key not in self.provenance:
            key = key.rpartition(".")[0]
        return self.provenance.get(key, SCHEMA_LAYER)


# layers ---------------------------------------------------------------------------------------------------------------
def compose(cfg_path: str | Path, options: Sequence[str] = ()) -> Composition:
    """Compose a run from its YAML and overrides; errors are collected in the result, not raised.

    Raises:
        ConfigError: a file is missing or is not YAML.
    """
    return compose_layers([*base_chain(Path(cfg_path)), parse_options(options)], Path(cfg_path))


def compose_dataset(name: str, options: Sequence[str] = (), section: Mapping[str, Any] | None = None) -> Composition:
    """As `compose`, for one named data set outside of a run.

    Args:
        section: keys that override those of the data set's row.
    """
    layer = Layer(f"data set {name}", {"datasets": {name: dict(section or {})}})
    return compose_layers([layer, parse_options(options)], Path(name))


def compose_layers(own: Sequence[Layer], cfg_path: Path) -> Composition:
    """As `compose`, from layers in memory; the last one wins.

    Args:
        own: the layers of the run; the defaults of its model and data sets are put below them.
        cfg_path: name of the configuration in messages.
    """
    if errors := section_errors(own):
        raise ErrorList(f"{cfg_path}:", errors)
    redaction.remember_environment([layer.content for layer in own])
    chosen, _ = merge(own)
    errors = _add_folders(chosen.get("configs") or [], cfg_path)
    errors += import_plugins(chosen.get("imports") or [], cfg_path)
    own, notes = without_keys_of_others(own)
    defaults, wrong_names = default_layers(chosen)
    composition = Composition([*defaults, *own])
    composition.named = {key for layer in defaults for key, _ in flatten(layer.content)}
    composition.errors = errors + wrong_names
    _type_run(composition)
    composition.config.model_is_known = not any(error.startswith("model.") for error in wrong_names)
    composition.config.notes = notes + _replaced() + composition.config.notes
    return composition


def _replaced() -> list[str]:
    """A note about the names that classes of imported modules took over."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, Registry)]
    taken = [f"{kind.kind} {name} ({kind.get(name).__module__})" for kind in kinds for name in sorted(kind.replaced)]
    return [f"imports: these take the place of the package's own: {', '.join(taken)}."] if taken else []


def overlaid(composition: Composition, layer: Layer) -> Composition:
    """A composed run with one more layer on top. Errors that do not come from types are kept."""
    again = Composition([Layer("composed", composition.tree), layer])
    again.unset, again.named = again.unset | composition.unset, composition.named
    again.order = [*composition.order, layer.name]
    again.provenance = {**composition.provenance, **{key: layer.name for key, _ in flatten(layer.content)}}
    _type_run(again)
    again.errors = [*composition.errors, *(error for error in again.errors if error not in composition.errors)]
    again.config.notes = list(dict.fromkeys([*composition.config.notes, *again.config.notes]))
    return again


def model_sections(arch: str, model_type: str) -> tuple[ModelConfig, PreprocessConfig]:
    """Sections `model` and `preprocess` of a model type, outside of a run.

    Raises:
        RegistryError: unknown arch.
        ConfigError: the arch has no such type.
        ErrorList: the type's YAML does not fit the arch's section.
    """
    registry.model.section_of(arch)
    layers, errors = model_layers(arch, model_type)
    if errors:
        raise ConfigError(errors[0])
    composition = Composition([*layers, Layer("load_model", {"model": {"arch": arch, "model_type": model_type}})])
    checker = Checker(composition.where, composition.unset)
    tree = _resolved(composition.tree)
    sections = _model_section(checker, tree), checker.section(PreprocessConfig, tree.get("preprocess"), "preprocess")
    if checker.errors:
        raise ErrorList(f"{arch}/{model_type} cannot be loaded:", checker.errors)
    return sections


def import_plugins(names: Sequence[str], cfg_path: Path) -> list[str]:
    """Import the modules of `imports:`, from the working folder, the installed packages or the package's recipes."""
    if str(Path.cwd()) not in sys.path:  # as with `python train.py`
        sys.path.insert(0, str(Path.cwd()))
    if any(name.startswith("projects.") for name in names):
        sys.path += [str(RECIPES)] if str(RECIPES) not in sys.path else []
    errors = []
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as error:
            errors.append(f"{cfg_path}: imports: {name}: {error}. Modules are looked up from the working folder "
                          f"({Path.cwd()}) and the installed packages.{_hint_at_module(name, cfg_path)}")
    return errors


def _hint_at_module(name: str, cfg_path: Path) -> str:
    """A hint at a folder above the YAML (such as a run's config.yaml) that has the module, or ""."""
    first = name.split(".")[0]
    for folder in cfg_path.absolute().parents:
        if folder != Path.cwd() and any(map(os.path.isfile, (folder / f"{first}.py", folder / first / "__init__.py"))):
            return f" {folder} has {first}: start the command there, or set PYTHONPATH={shlex.quote(str(folder))}."
    return ""


def _add_folders(folders: Sequence[str], cfg_path: Path) -> list[str]:
    """Register the folders of `configs:`; returns errors."""
    errors = []
    for folder in folders:
        try:
            registry.register_path("configs", folder)
        except RegistryError:
            name = Path(folder).name  # a project that was moved: its runs have the former path
            moved = f" If {name} is it now, add --options configs=[{name}]." if os.path.isdir(name) else ""
            errors.append(f"{cfg_path}: configs: there is no folder {folder}. Relative paths start at the folder of "
                          f"the file.{moved}")
    return errors


def default_layers(chosen: Mapping[str, Any]) -> tuple[list[Layer], list[str]]:
    """The layers of a run's model type and data sets, and errors of their names."""
    chosen = OmegaConf.create(dict(chosen)) if _has_interpolations(chosen) else chosen
    model = chosen.get("model") or {}
    arch, model_type = (str(_filled_in(model, key, getattr(ModelConfig, key))) for key in ("arch", "model_type"))
    layers, errors = model_layers(arch, model_type, is_named=model.get("model_type") is not None)
    for name, section in (chosen.get("datasets") or {}).items():
        named = {key: _filled_in(section or {}, key, None) for key in ("builder", "type", "data_type")}
        written = OmegaConf.to_container(section) if OmegaConf.is_config(section) else section
        named |= {"files": file_names(written), "only_shards": only_shards(written) or None}
        found, wrong = dataset_layer(str(name), {key: value for key, value in named.items() if value is not None})
        layers, errors = layers + found, errors + wrong
    return layers, errors


def _filled_in(section: Any, key: str, default: Any) -> Any:
    """A value that chooses a section's defaults, with its interpolation resolved."""
    try:
        value = section.get(key, default)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{key}: the interpolation cannot be resolved: {str(error).splitlines()[0]}") from error
    return default if value is None else value


# types ----------------------------------------------------------------------------------------------------------------
def _type_run(composition: Composition) -> None:
    """Fill `composition.config` and collect errors.

    Keys set to null leave the tree, but for those that the defaults of a model type or data set would set again.
    """
    checker = Checker(composition.where, composition.unset)
    tree = _resolved(composition.tree)
    composition.config = config = Config(
        model=_model_section(checker, tree),
        preprocess=checker.section(PreprocessConfig, tree.get("preprocess"), "preprocess"),
        datasets={str(name): _dataset_section(checker, str(name), section)
                  for name, section in (tree.get("datasets") or {}).items()},
        run=_run_section(checker, tree.get("run") or {}),
        imports=[str(name) for name in tree.get("imports") or []],
        notes=checker.notes,
        provenance=composition.provenance)
    gone = [key for key in checker.left_out
            if not any(f"{other}.".startswith(f"{key}.") for other in composition.named)]
    composition.tree = without(composition.tree, gone)
    config.as_written = dict(_interpolations(composition.tree))
    _fill_processors(config)
    _prefer_own_prompt(config)
    references_of_run(config)
    note_unread_prompt(config)
    composition.errors += checker.errors


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """The plain containers of a merged tree, with interpolations resolved.

    Raises:
        ConfigError: an interpolation cannot be resolved, or its value is not plain.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.create(tree), resolve=True) if _has_interpolations(tree) else tree
    except RecursionError as error:
        raise ConfigError("an interpolation cannot be resolved: it refers to itself.") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"an interpolation cannot be resolved: {' '.join(str(error).split())[:400]}") from error
    checked: dict[str, Any] = plain(found, "after interpolation", resolved=True)
    if errors := section_errors([Layer("after interpolation", checked)]):
        raise ErrorList("the configuration", errors)
    return checked


def _interpolations(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value as written) of every leaf with an interpolation."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _interpolations(value, (*path, str(key)))
    elif "${" in str(tree):
        yield path, tree


def _has_interpolations(tree: Any) -> bool:
    """Whether OmegaConf is needed: it takes longer than all else of a composition."""
    return any(_interpolations(tree))


def _section_class(kind: Registry[Any], name: str, base: type) -> Any:
    try:
        return kind.section_of(name) or base
    except RegistryError:
        return type("Unchecked", (base,), {"open_ended": True})  # the unknown name is reported for its own key


def _model_section(checker: Checker, tree: Mapping[str, Any]) -> ModelConfig:
    model = tree.get("model") or {}
    section: ModelConfig = checker.section(
        _section_class(registry.model, model.get("arch") or ModelConfig.arch, ModelConfig), model, "model")
    return section


def _run_section(checker: Checker, run: dict[str, Any]) -> RunConfig:
    for key, kind in (("task", registry.task), ("runner", registry.runner), ("lr_sched", registry.lr_scheduler)):
        if run.get(key) is not None and run[key] not in kind.names():
            try:
                kind.get(run[key])
            except RegistryError as error:
                checker.error(f"run.{key}", str(error))
    run_class = _section_class(registry.task, run.get("task") or RunConfig.task, RunConfig)
    section: RunConfig = checker.section(run_class, run, "run", schema.TASK_KEYS_OF_LAVIS)
    for key in ("output_dir", "resume_ckpt_path"):  # no shell fills in the ~ of `--options run.output_dir=~/runs`
        path = os.path.expanduser(getattr(section, key) or "")
        setattr(section, key, path or getattr(section, key))
        if path.startswith("~"):
            checker.error(f"run.{key}", f"{path}: this system has no such user; write the whole path.")
    for key, why in schema.RUN_KEYS_WITHOUT_EFFECT.items():
        if run.get(key) is not None:
            checker.notes.append(f"{checker.where('run.' + key)}: run.{key} has no effect: {why}.")
    return section


def _dataset_section(checker: Checker, name: str, section: Any) -> DatasetConfig:
    section = dict(section or {})
    builder = section.get("builder") or name
    if builder not in registry.builder.names():
        try:
            registry.builder.get(builder)
        except RegistryError as error:
            if section.get("builder"):
                checker.error(f"datasets.{name}.builder", str(error))
    section_class = _section_class(registry.builder, builder, DatasetConfig)
    if builder == name and name not in registry.builder and without_row(name):
        return DatasetConfig()  # its name is reported; nothing else of it is read
    if not issubclass(section_class, OpenSection):  # else the builder reads LAVIS' keys itself
        section = translated(name, section, checker.note, checker.error)
        if isinstance(section.get("data_type"), list):  # LAVIS also writes [images]
            section["data_type"] = ",".join(map(str, section["data_type"]))
    typed: DatasetConfig = checker.section(section_class, section, f"datasets.{name}")
    return typed


def _fill_processors(config: Config) -> None:
    """A data set without a processor takes the model's, with its own settings on top (image_size, prompt).

    One of arrays has no images, so that the model's image processor is not for it.
    """
    for dataset in config.datasets.values():
        for kind in ("text_processor",) if getattr(dataset, "arrays", None) else ("vis_processor", "text_processor"):
            own, fallback = getattr(dataset, kind), getattr(config.preprocess, kind)
            for mode in ("train", "eval"):
                set_here = getattr(own, mode) or {}
                if "name" not in set_here:
                    setattr(own, mode, {**(getattr(fallback, mode) or {}), **set_here} or None)


def _prefer_own_prompt(config: Config) -> None:
    """A run's own prompt for questions goes before the instructions that a packaged data set brings."""
    if "{}" not in (getattr(config.run, "prompt", None) or ""):
        return
    for name, dataset in config.datasets.items():
        pair = getattr(dataset, "instruction", None)
        brought = [layer for key, layer in config.provenance.items() if key.startswith(f"datasets.{name}.instruction.")]
        if pair and (pair.train or pair.eval) and all(layer.startswith("datasets/") for layer in brought):
            pair.train = pair.eval = None
            config.notes.append(f"datasets.{name}.instruction: run.prompt goes before it.")


# text -----------------------------------------------------------------------------------------------------------------
def to_yaml(composition: Composition, with_layers: bool = False) -> str:
    """The composed run as YAML that composes to itself; with layers: each leaf with the layer that set it.

    Interpolations stay as written, so that no environment variable gets into a file or a log.
    """
    tree = composition.tree
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    return redaction.mask(_annotate(tree, composition) if with_layers else text)


def _annotate(tree: dict[str, Any], composition: Composition) -> str:
    """One line per leaf, schema defaults of `run:` and `model:` included."""
    lines = []
    shown = dict(flatten(tree))
    for section in ("model", "run"):
        for key, value in vars(getattr(composition.config, section)).items():
            dotted = f"{section}.{key}"
            if dotted not in shown and not any(other.startswith(dotted + ".") for other in shown):
                shown[dotted] = value
    order = {name: index for index, name in enumerate(("imports", "configs", "model", "preprocess", "datasets", "run"))}
    position = {key: index for index, key in enumerate(shown)}
    for key in sorted(shown, key=lambda dotted: (order.get(dotted.split(".")[0], 9), position[dotted])):
        text = yaml.safe_dump(shown[key], default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
        lines.append(f"{key}: {text}".ljust(76) + f"  # {composition.provenance.get(key, SCHEMA_LAYER)}")
    return "\n".join(lines) + "\n"
