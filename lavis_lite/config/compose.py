"""Layers -> one checked `Config`.

Later layers win: schema defaults, configs/models (by arch and model_type), configs/datasets (by name and type), the
`base:` chain of the run YAML, the run YAML, --options. Each registered class owns its part of the schema through its
`config_class`.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite import redaction
from lavis_lite.config import schema
from lavis_lite.config.layers import SECTIONS, Layer, base_chain, flatten, merge, parse_options, read_yaml
from lavis_lite.config.plain import plain
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.config.typed import Checker
from lavis_lite.errors import ConfigError, Faults, RegistryError, did_you_mean, shown
from lavis_lite.registry import registry

CONFIGS = resources.files("lavis_lite") / "configs"
MODEL_CONFIG_HOME = {"blip2_feature_extractor": "blip2", "blip2_image_text_matching": "blip2"}
"""archs that share another arch's files under configs/models"""
SCHEMA_LAYER = "default"


class Composition:
    """A composed run: the typed `config`, every fault found, and the merged tree with its provenance."""

    def __init__(self, tree: DictConfig, provenance: dict[str, str]) -> None:
        self.tree = tree
        self.provenance = provenance
        self.faults: list[str] = []
        self.config: Config = Config(ModelConfig(), PreprocessConfig(), {}, RunConfig())

    def where(self, key: str) -> str:
        """Name of the layer that set a key, the last of its children, or the value it is part of."""
        inside = [name for child, name in self.provenance.items() if child.startswith(key + ".")]
        if inside:
            return inside[-1]
        while key and key not in self.provenance:
            key = key.rpartition(".")[0]
        return self.provenance.get(key, SCHEMA_LAYER)


def compose(cfg_path: str | Path, options: Sequence[str] = ()) -> Composition:
    """Compose a run from its YAML and overrides; faults are collected in the result, not raised.

    Raises:
        ConfigError: a file is missing or is no YAML, so that nothing can be composed.
    """
    return compose_layers([*base_chain(Path(cfg_path)), parse_options(options)], Path(cfg_path))


def compose_dataset(name: str, options: Sequence[str] = (), section: Mapping[str, Any] | None = None) -> Composition:
    """As `compose`, a run of one data set of the package, for what is done to data sets outside of runs.

    Args:
        section: what is to lie over the package's row.
    """
    layer = Layer(f"data set {name}", {"datasets": {name: dict(section or {})}})
    return compose_layers([layer, parse_options(options)], Path(name))


def compose_layers(own: Sequence[Layer], cfg_path: Path) -> Composition:
    """As `compose`, from layers that were read already, the last of which wins.

    Args:
        own: the layers of the run; the package's defaults go below them.
        cfg_path: what messages about the whole name.
    """
    if faults := section_faults(own):
        raise Faults(f"{cfg_path}:", faults)
    redaction.remember_environment([layer.content for layer in own])
    chosen, _ = merge(own)
    faults = import_plugins(chosen.get("imports") or [], cfg_path)
    defaults, default_faults = default_layers(chosen)
    tree, provenance = merge([*defaults, *own])
    composition = Composition(tree, provenance)
    composition.faults = faults + default_faults
    _type_sections(composition)
    return composition


def overlaid(composition: Composition, layer: Layer) -> Composition:
    """A composed run with one more layer over it. Faults that do not come from types are kept."""
    tree, _ = merge([Layer("composed", OmegaConf.to_container(composition.tree, resolve=False)), layer])  # type: ignore[arg-type]
    provenance = {**composition.provenance, **{key: layer.name for key, _ in flatten(layer.content)}}
    again = Composition(tree, provenance)
    _type_sections(again)
    again.faults = [*composition.faults, *(fault for fault in again.faults if fault not in composition.faults)]
    return again


def section_faults(layers: Sequence[Layer]) -> list[str]:
    """Top-level keys that are no section, and sections of another shape than they must have."""
    faults = []
    for layer in layers:
        for key, content in layer.content.items():
            if key not in SECTIONS:
                faults.append(f"{layer.name}: unknown section {shown(key)}; {did_you_mean(key, SECTIONS)}")
            elif problem := _shape_problem(key, content):
                faults.append(f"{layer.name}: {problem}")
    return faults


def _shape_problem(key: str, content: Any) -> str:
    """What is wrong with the shape of a section; "" when nothing is."""
    if content is None:
        return ""
    if key == "imports":
        named = isinstance(content, list) and all(map(_is_module_name, content))
        return "" if named else f"imports: must be a list of modules, such as [my_plugin], not {shown(content)}."
    if not isinstance(content, Mapping):
        return f"{key}: must be a section of keys, not {shown(content)}."
    for name, section in content.items() if key == "datasets" else ():
        if section is not None and not isinstance(section, Mapping):
            return f"datasets.{name}: must be a section of keys, not {shown(section)}."
    return ""


def _is_module_name(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def import_plugins(names: Sequence[str], cfg_path: Path) -> list[str]:
    """Import the modules of `imports:`; the working folder is on the path, as for `python train.py`."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    faults = []
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as fault:
            faults.append(f"{cfg_path}: imports: {name}: {fault}. Modules are looked up from the working folder "
                          f"({Path.cwd()}) and the installed packages.{_where_it_is(name, cfg_path)}")
    return faults


def _where_it_is(name: str, cfg_path: Path) -> str:
    """A sentence on a folder above a YAML, such as a run's config.yaml, that has a module; "" if none has."""
    first = name.split(".")[0]
    for folder in cfg_path.absolute().parents:
        if folder != Path.cwd() and ((folder / f"{first}.py").is_file() or (folder / first / "__init__.py").is_file()):
            return f" {folder} has {first}: start the command there, or set PYTHONPATH={shlex.quote(str(folder))}."
    return ""


def default_layers(chosen: DictConfig) -> tuple[list[Layer], list[str]]:
    """The package's own layers for the model and the data sets that a run names, and what is wrong with the names."""
    layers: list[Layer] = []
    faults: list[str] = []
    model = chosen.get("model") or {}
    arch, model_type = (str(_filled_in(model, key, getattr(ModelConfig, key))) for key in ("arch", "model_type"))
    layer, fault = model_layer(arch, model_type)
    layers += [layer] if layer else []
    faults += [fault] if fault else []
    for name, section in (chosen.get("datasets") or {}).items():
        named = {key: _filled_in(section or {}, key, None) for key in ("builder", "type")}
        layer, fault = dataset_layer(str(name), {key: value for key, value in named.items() if value is not None})
        layers += [layer] if layer else []
        faults += [fault] if fault else []
    return layers, faults


def _filled_in(section: Any, key: str, default: Any) -> Any:
    """A value of a section that decides which defaults belong to it, its interpolation filled in."""
    try:
        return section.get(key, default)
    except (OmegaConfBaseException, RecursionError) as fault:
        raise ConfigError(f"{key}: the interpolation in it cannot be resolved: {str(fault).splitlines()[0]}") from fault


def model_types(arch: str) -> dict[str, Path]:
    """model_type -> its YAML: the package's files, or those a plugin class lists in PRETRAINED_MODEL_CONFIG_DICT."""
    folder = Path(str(CONFIGS / "models" / MODEL_CONFIG_HOME.get(arch, arch)))
    if folder.is_dir():
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    cls = registry.get_model_class(arch)
    home = Path(sys.modules[cls.__module__].__file__ or ".").parent
    return {name: home / path for name, path in getattr(cls, "PRETRAINED_MODEL_CONFIG_DICT", {}).items()}


def model_layer(arch: str, model_type: str) -> tuple[Layer | None, str | None]:
    """(the default layer of a model, or what is wrong with its name); a class without files has no layer."""
    try:
        registry.get_model_class(arch)
        types = model_types(arch)
    except RegistryError as fault:
        return None, f"model.arch: {fault}"
    if not types:
        return None, None
    if model_type not in types:
        return None, (f"model.model_type: {arch} has no type {model_type!r}; {did_you_mean(model_type, types)}"
                      f"{_archs_with(model_type)}")
    content = read_yaml(types[model_type])
    content = {key: content[key] for key in ("model", "preprocess") if key in content}
    return Layer(f"models/{types[model_type].parent.name}/{model_type}.yaml", content), None


def _archs_with(model_type: str) -> str:
    """A clause that names the package's archs which have a type of that name; empty when none has."""
    archs = [arch for arch in sorted(registry.model.builtins)
             if MODEL_CONFIG_HOME.get(arch, arch) == arch and model_type in model_types(arch)]
    return f" {model_type!r} is a type of {' and '.join(archs)}." if archs else ""


def model_sections(arch: str, model_type: str) -> tuple[ModelConfig, PreprocessConfig]:
    """Sections `model` and `preprocess` of a model type, without a run around them.

    Raises:
        RegistryError: unknown arch.
        ConfigError: the arch has no such type.
        Faults: the YAML of the type does not fit the arch's section.
    """
    registry.get_model_class(arch)
    layer, fault = model_layer(arch, model_type)
    if fault:
        raise ConfigError(fault)
    asked = Layer("load_model", {"model": {"arch": arch, "model_type": model_type}})
    composition = Composition(*merge([*([layer] if layer else []), asked]))
    _type_sections(composition)
    if composition.faults:
        raise Faults(f"{arch}/{model_type} cannot be loaded:", composition.faults)
    return composition.config.model, composition.config.preprocess


def dataset_names() -> list[str]:
    """Data sets that ship as rows under configs/datasets."""
    names = [path.name for path in (CONFIGS / "datasets").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def dataset_rows(name: str) -> dict[str, Any]:
    """type -> section of a data set that ships. A file may say `base: <other>`: its types with `changes` over each."""
    rows = dict(read_yaml(Path(str(CONFIGS / "datasets" / f"{name}.yaml"))))
    if "base" not in rows:
        return rows
    changes = rows.get("changes") or {}
    return {kind: OmegaConf.to_container(OmegaConf.merge(row, changes))
            for kind, row in dataset_rows(str(rows["base"])).items()}


def dataset_layer(name: str, section: Mapping[str, Any]) -> tuple[Layer | None, str | None]:
    """(the default layer of a data set, or what is wrong with its name or type)."""
    if name not in dataset_names():
        if section.get("builder") or name in registry.builder:
            return _builder_layer(name, section)
        return None, (f"datasets.{name}: neither a data set of the package nor a registered builder; "
                      f"{did_you_mean(name, [*dataset_names(), *registry.builder.names()])} "
                      "For files of your own add `builder: custom`.")
    rows, wanted = dataset_rows(name), str(section.get("type", "default"))
    if wanted not in rows:
        return None, f"datasets.{name}.type: no type {wanted!r}; {did_you_mean(wanted, rows)}"
    return Layer(f"datasets/{name}.yaml", {"datasets": {name: rows[wanted]}}), None


def _builder_layer(name: str, section: Mapping[str, Any]) -> tuple[Layer | None, str | None]:
    """The defaults of a registered builder that lists YAML files by type in DATASET_CONFIG_DICT, as LAVIS' do."""
    builder = str(section.get("builder") or name)
    types = getattr(registry.builder.get(builder), "DATASET_CONFIG_DICT", {}) if builder in registry.builder else {}
    wanted = str(section.get("type", "default"))
    if not types:
        return None, None
    if wanted not in types:
        return None, f"datasets.{name}.type: no type {wanted!r}; {did_you_mean(wanted, types)}"
    rows = read_yaml(Path(types[wanted])).get("datasets") or {}
    row = rows.get(name) or next(iter(rows.values()), None) or {}
    return Layer(types[wanted], {"datasets": {name: row}}), None


def _type_sections(composition: Composition) -> None:
    """Fill `composition.config`; whatever does not fit is added to its faults."""
    checker = Checker(composition.where)
    tree = _resolved(composition.tree)
    model, run = tree.get("model") or {}, tree.get("run") or {}
    datasets = {str(name): _dataset_section(checker, str(name), section)
                for name, section in (tree.get("datasets") or {}).items()}
    model_class = _config_class(registry.model, model.get("arch", ModelConfig.arch), ModelConfig)
    config = Config(
        model=checker.section(model_class, model, "model"),
        preprocess=checker.section(PreprocessConfig, tree.get("preprocess"), "preprocess"),
        datasets=datasets,
        run=_run_section(checker, run),
        imports=[str(name) for name in tree.get("imports") or []],
        provenance=composition.provenance,
        as_written=dict(_interpolations(OmegaConf.to_container(composition.tree, resolve=False))))
    _fill_processors(config)
    config.notes = checker.notes
    composition.faults += checker.faults
    composition.config = config


def _resolved(tree: DictConfig) -> dict[str, Any]:
    """The plain containers of a merged tree, interpolations filled in.

    Raises:
        ConfigError: one of them cannot be filled in, or gives something that a configuration cannot hold.
    """
    try:
        found = OmegaConf.to_container(tree, resolve=True)
    except RecursionError as fault:
        raise ConfigError("an interpolation cannot be resolved: it leads back to itself.") from fault
    except (OmegaConfBaseException, TypeError, ValueError) as fault:
        raise ConfigError(f"an interpolation cannot be resolved: {' '.join(str(fault).split())[:400]}") from fault
    checked: dict[str, Any] = plain(found, "after interpolation", resolved=True)
    if faults := section_faults([Layer("after interpolation", checked)]):
        raise Faults("the configuration", faults)
    return checked


def _interpolations(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value as written) of every leaf with an interpolation in it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _interpolations(value, (*path, str(key)))
    elif "${" in str(tree):
        yield path, tree


def _config_class(kind: Any, name: str, base: type) -> type:
    try:
        cls: Any = kind.get(name)
        return cls.section_class if hasattr(cls, "section_class") else getattr(cls, "config_class", base)
    except RegistryError:
        return type("Unchecked", (base,), {"open_ended": True})  # the unknown name is reported where it stands


def _run_section(checker: Checker, run: dict[str, Any]) -> RunConfig:
    task = run.get("task", RunConfig.task)
    for key, kind in (("task", registry.task), ("runner", registry.runner), ("lr_sched", registry.lr_scheduler)):
        if run.get(key) is not None and run[key] not in kind.names():
            try:
                kind.get(run[key])
            except RegistryError as fault:
                checker.fault(f"run.{key}", str(fault))
    run_class: type[RunConfig] = _config_class(registry.task, task, RunConfig)
    section = checker.section(run_class, run, "run", schema.TASK_KEYS_OF_LAVIS)
    for key, why in schema.RUN_KEYS_WITHOUT_EFFECT.items():
        if run.get(key) is not None:
            checker.notes.append(f"{checker.where('run.' + key)}: run.{key} has no effect: {why}.")
    return section


def _dataset_section(checker: Checker, name: str, section: Any) -> DatasetConfig:
    section = dict(section or {})
    if isinstance(section.get("data_type"), list):  # LAVIS also writes [images]
        section["data_type"] = ",".join(map(str, section["data_type"]))
    builder = section.get("builder") or name
    if builder not in registry.builder.names():
        try:
            registry.builder.get(builder)
        except RegistryError as fault:
            if section.get("builder"):
                checker.fault(f"datasets.{name}.builder", str(fault))
    return checker.section(_config_class(registry.builder, builder, DatasetConfig), section, f"datasets.{name}")


def _fill_processors(config: Config) -> None:
    """A data set that names no processor takes the model's, with what it sets itself on top (image_size, prompt)."""
    for dataset in config.datasets.values():
        for kind in ("vis_processor", "text_processor"):
            own, fallback = getattr(dataset, kind), getattr(config.preprocess, kind)
            for mode in ("train", "eval"):
                set_here = getattr(own, mode) or {}
                if "name" not in set_here:
                    setattr(own, mode, {**(getattr(fallback, mode) or {}), **set_here} or None)


def to_yaml(composition: Composition, with_layers: bool = False) -> str:
    """The composed run as YAML that composes to itself; with layers: each leaf followed by the layer that set it.

    Interpolations stay as written, so that no environment variable ends in a file or a log.
    """
    tree: Any = OmegaConf.to_container(composition.tree, resolve=False)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    return redaction.mask(_annotate(tree, composition) if with_layers else text)


def _annotate(plain: dict[str, Any], composition: Composition) -> str:
    """One line per leaf, schema defaults of `run:` and `model:` included."""
    lines = []
    shown = dict(flatten(plain))
    for section in ("model", "run"):
        for key, value in vars(getattr(composition.config, section)).items():
            dotted = f"{section}.{key}"
            if dotted not in shown and not any(other.startswith(dotted + ".") for other in shown):
                shown[dotted] = value
    order = {name: place for place, name in enumerate(("imports", "model", "preprocess", "datasets", "run"))}
    for key in sorted(shown, key=lambda dotted: (order.get(dotted.split(".")[0], 9), list(shown).index(dotted))):
        text = yaml.safe_dump(shown[key], default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
        lines.append(f"{key}: {text}".ljust(76) + f"  # {composition.provenance.get(key, SCHEMA_LAYER)}")
    return "\n".join(lines) + "\n"
