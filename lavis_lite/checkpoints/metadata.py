"""The sections `model` and `preprocess` of a checkpoint, read from its files or named by the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints import weights
from lavis_lite.checkpoints.export import CheckpointMetadata
from lavis_lite.checkpoints.formats.hf_config import section_of
from lavis_lite.checkpoints.manifest import CONFIG, WEIGHTS, json_object, safetensors_metadata
from lavis_lite.checkpoints.reading import EXTRA, read_tensors
from lavis_lite.checkpoints.report import seems_to_be
from lavis_lite.checkpoints.unpickling import read_torch_file
from lavis_lite.config.compose import import_plugins
from lavis_lite.config.layers import Layer, read_yaml, section_errors
from lavis_lite.config.named import model_types, type_content
from lavis_lite.config.schema import ModelConfig, NamesLanguageModel
from lavis_lite.config.typed import Checker
from lavis_lite.errors import CheckpointError, ConfigError, DataError, ErrorList, did_you_mean
from lavis_lite.registry import registry


def find(source: str | Path) -> Path:
    """A local path of a checkpoint, fetched where it is a URL or a repository.

    Raises:
        DataError: it is not found; the message has the places searched and how to get it.
    """
    try:
        return weights.WeightFile("pretrained", str(source)).fetch()
    except DataError as error:
        raise DataError(str(error).replace("model.pretrained: ", "--checkpoint: ", 1)) from error


def metadata_of(path: Path, arch: str | None = None, model_type: str | None = None) -> CheckpointMetadata:
    """Sections `model` and `preprocess` of a checkpoint: those of a model type, or what its own files record.

    Raises:
        ConfigError: an unknown model or type.
        CheckpointError: it records nothing.
    """
    if arch is not None:
        return _of_type(arch, model_type)
    for look in (metadata_from_safetensors, metadata_from_yaml, metadata_from_hf_config, metadata_from_pth):
        found = look(path)
        if found is not None:
            return found
    guess = seems_to_be(read_tensors(path))
    raise CheckpointError(f"{path} does not record which model it belongs to; it looks like {guess}. Name it: --model "
                          "ARCH --type TYPE (`python -m lavis_lite models` lists them).")


def _of_type(arch: str, model_type: str | None) -> CheckpointMetadata:
    registry.get_model_class(arch)
    types = model_types(arch)
    if model_type is None:
        raise ConfigError(f"--type: {arch} has the types {', '.join(types)}; choose one.")
    if model_type not in types:
        raise ConfigError(f"--type: {arch} has no type {model_type!r}; {did_you_mean(model_type, types)}")
    content = type_content(arch, model_type)
    model = {**content.get("model", {}), "arch": arch, "model_type": model_type}
    return _afresh({**content, "model": model}, f"{arch}/{model_type}")


def _afresh(content: Mapping[str, Any], where: str | Path) -> CheckpointMetadata:
    """Sections without the checkpoints that they started from: these weights take their place."""
    none = {"load_pretrained": False, "pretrained": None, "load_finetuned": False, "finetuned": None}
    found = _sections(content, where)
    kept = {key: value for key, value in found.model.items() if key != "pretrained_stage1"}
    return CheckpointMetadata({**kept, **none}, found.preprocess)


def _sections(content: Mapping[str, Any], where: str | Path) -> CheckpointMetadata:
    """Sections `model` and `preprocess` as they were written; absent ones are empty.

    Raises:
        CheckpointError: they are not mappings.
    """
    found = {name: content.get(name) for name in ("model", "preprocess")}
    _check_shapes(found, where)
    return CheckpointMetadata(**{name: dict(section or {}) for name, section in found.items()})


def _check_shapes(sections: dict[str, Any], where: str | Path) -> None:
    if errors := section_errors([Layer(str(where), sections)]):
        raise CheckpointError(f"{' '.join(errors)} It was altered; name the model: --model ARCH --type TYPE.")


def metadata_from_safetensors(path: Path) -> CheckpointMetadata | None:
    """What `export` wrote into a .safetensors file."""
    for file in (path, path / EXTRA, path / WEIGHTS):
        text = safetensors_metadata(file).get("lavis_lite")
        origin = _sections(json_object(text, file), file) if text else CheckpointMetadata()
        if origin.model:
            if origin.model.keys() == {"arch", "model_type"}:  # a packaged checkpoint names its type only
                return _of_type(**origin.model)
            return _with_own_language_model(origin, path) if file.name == EXTRA else origin
    return None


def _with_own_language_model(origin: CheckpointMetadata, folder: Path) -> CheckpointMetadata:
    """The language model that lies in a folder of transformers' format, where its own source is not on this machine."""
    section = typed_section(origin.model)
    if not isinstance(section, NamesLanguageModel) or section.llm_args is not None or weights.WeightFile(
            "llm_model", section.language_model_name()).is_local():
        return origin
    keys = section_of(_hf_config(folder), folder)
    taken: dict[str, Any] = {key: keys[key] for key in ("llm_args", "llm_tokenizer", "llm_family") if key in keys}
    return CheckpointMetadata({**origin.model, **taken}, origin.preprocess)


def metadata_from_yaml(path: Path) -> CheckpointMetadata | None:
    """The config.yaml of a run's checkpoint, which holds every setting that differs from its class's default."""
    if not (path / CONFIG).is_file():
        return None
    content = read_yaml(path / CONFIG)
    _check_shapes({"imports": content.get("imports")}, path / CONFIG)
    if faults := import_plugins(content.get("imports") or [], path / CONFIG):
        raise ErrorList(f"{path / CONFIG}:", faults)
    return _afresh(content, path / CONFIG) if content.get("model") else None


def metadata_from_hf_config(path: Path) -> CheckpointMetadata | None:
    """The config.json of a folder in transformers' format."""
    if not (path / "config.json").is_file():
        return None
    try:
        return CheckpointMetadata(section_of(_hf_config(path), path))
    except CheckpointError as error:  # of a field: which file it is in
        raise CheckpointError(f"{path}/{error}" if str(error).startswith("config.json") else str(error)) from error


def _hf_config(folder: Path) -> dict[str, Any]:
    return json_object((folder / "config.json").read_bytes(), folder / "config.json")


def metadata_from_pth(path: Path) -> CheckpointMetadata | None:
    """The configuration inside a .pth, as LAVIS' runner and `export_lavis` put it there."""
    if path.suffix not in (".pth", ".pt") or not path.is_file():
        return None
    content, _ = read_torch_file(path)
    config = content.get("config") if isinstance(content, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "arch" not in model:
        return None
    if "lavis_lite" in content:  # written by `export_lavis`: a whole section
        return _afresh(config, path)  # type: ignore[arg-type]  # it has a model
    arch, kind = str(model["arch"]), str(model.get("model_type"))
    return _of_type(arch, kind) if arch in registry.list_models() and kind in model_types(arch) else None


def typed_section(content: Mapping[str, Any]) -> ModelConfig:
    """A section `model` as its arch's config class.

    Raises:
        ErrorList: keys or values that do not fit it.
    """
    cls = registry.get_model_class(str(content.get("arch"))).config_class
    checker = Checker(lambda key: "the checkpoint's configuration")
    section = checker.section(cls, dict(content), "model")
    if checker.errors:
        raise ErrorList("the checkpoint's configuration does not fit:", checker.errors)
    return section
