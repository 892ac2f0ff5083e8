"""From one format of checkpoints to another: what is read, which model it belongs to, what is written.

The model is built on the meta device, so that names and shapes are checked without memory or weights of frozen
parts. Only what a format needs and the source lacks (the frozen parts, in transformers' format) is loaded besides.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lavis_lite import weights
from lavis_lite.config.compose import import_plugins, model_types
from lavis_lite.config.layers import read_yaml
from lavis_lite.config.typed import Checker
from lavis_lite.errors import CheckpointError, ConfigError, DataError, Faults, did_you_mean
from lavis_lite.models.blip2_qformer import INITIAL_TEMPERATURE
from lavis_lite.models.checkpoints.export import (
    CONFIG,
    ExportReport,
    Origin,
    export_hf,
    export_lavis,
    export_lite,
    first_names,
)
from lavis_lite.models.checkpoints.hf_config import section_of
from lavis_lite.models.checkpoints.load import fit_state
from lavis_lite.models.checkpoints.reading import EXTRA, WEIGHTS, read_extra, read_tensors
from lavis_lite.models.checkpoints.report import LoadReport, seems_to_be
from lavis_lite.registry import registry

FORMATS = ("hf", "lavis", "lite")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Converted:
    """What a conversion did: what was read, how many frozen tensors came from elsewhere, what was written."""

    read: LoadReport
    filled: int
    written: ExportReport

    def __str__(self) -> str:
        lines = [f"read {self.read}"]
        if self.filled:
            lines.append(f"frozen parts: {self.filled} tensors from the files that the model's section names")
        return "\n".join([*lines, f"wrote {self.written}"])


def convert(source: str | Path, to: str, out: str | Path, *, model: str | None = None, model_type: str | None = None,
            dtype: str | None = None, whole: bool = False) -> Converted:
    """Convert a checkpoint.

    Args:
        source: a run's checkpoint folder, .pth, .safetensors, a folder in transformers' format, a packaged name, a
            URL, or a repository of the Hugging Face hub.
        to: hf | lavis | lite.
        out: must not exist: a folder; for lavis a .pth; for lite a folder or a .safetensors file.
        model, model_type: what it is a checkpoint of, where the source does not tell.
        dtype: fp32 | fp16 | bf16, of everything; None: as it is.
        whole: for lavis and lite: the frozen parts too (transformers' format always has them).

    Raises:
        LavisLiteError: nothing there, it does not fit the model, or the format cannot hold it; nothing is written.
    """
    _check(to, dtype, out)
    path = find(source)
    origin = origin_of(path, model, model_type)
    section = _unplaced(typed_section(origin.model))
    skeleton = skeleton_of(section)
    state, read = fit_state(skeleton, read_tensors(path), str(source), extra=read_extra(path))
    state = first_names(skeleton, state) | _new_values(skeleton, read.not_in_layout)
    filled = _fill_frozen(skeleton, section, state) if whole or to == "hf" else 0
    chosen = DTYPES[dtype] if dtype else None
    if to == "hf":
        written = export_hf(skeleton, out, state=state, dtype=chosen, origin=origin, source=str(source))
    else:
        write = export_lavis if to == "lavis" else export_lite
        written = write(skeleton, out, state=state, whole=whole, dtype=chosen, origin=origin)
    return Converted(read, filled, written)


def _check(to: str, dtype: str | None, out: str | Path) -> None:
    """What can be wrong before anything is read."""
    if to not in FORMATS:
        raise ConfigError(f"--to: unknown format {to!r}; {did_you_mean(to, FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r}; {did_you_mean(dtype, DTYPES)}")
    place = Path(out).expanduser()
    if place.exists():
        raise CheckpointError(f"--out: {place} is there already and is not overwritten; remove it or choose another "
                              "name.")
    if to == "lavis" and place.suffix != ".pth":
        raise ConfigError(f"--out: {place} must end in .pth for LAVIS; try {place.with_suffix('.pth')}.")


# what it is ----------------------------------------------------------------------------------------------------------
def find(source: str | Path) -> Path:
    """A local path of a checkpoint, fetched where it is a URL or a repository.

    Raises:
        DataError: it is nowhere; the message tells where it was looked for and how to get it.
    """
    try:
        return weights.Need("pretrained", str(source)).fetch()
    except DataError as fault:
        raise DataError(str(fault).replace("model.pretrained: ", "--checkpoint: ", 1)) from fault


def origin_of(path: Path, arch: str | None = None, model_type: str | None = None) -> Origin:
    """Sections `model` and `preprocess` of a checkpoint: those of a model type, or what the checkpoint itself tells.

    Raises:
        ConfigError: an unknown model or type.
        CheckpointError: it tells nothing.
    """
    if arch is not None:
        return _of_type(arch, model_type)
    for look in (_told_by_metadata, _told_by_yaml, _told_by_transformers, _told_by_pth):
        found = look(path)
        if found is not None:
            return found
    guess = seems_to_be(read_tensors(path))
    raise CheckpointError(f"{path} does not tell which model it is of; it seems to be {guess}. Say so: --model ARCH "
                          "--type TYPE (`python -m lavis_lite models` lists them).")


def _of_type(arch: str, model_type: str | None) -> Origin:
    registry.get_model_class(arch)
    types = model_types(arch)
    if model_type is None:
        raise ConfigError(f"--type: {arch} has the types {', '.join(types)}; choose one.")
    if model_type not in types:
        raise ConfigError(f"--type: {arch} has no type {model_type!r}; {did_you_mean(model_type, types)}")
    content = read_yaml(types[model_type])
    return _afresh({**content.get("model", {}), "arch": arch, "model_type": model_type}, content.get("preprocess"))


def _afresh(model: Mapping[str, Any], preprocess: Mapping[str, Any] | None) -> Origin:
    """Sections without the checkpoints that they started from: these weights take their place."""
    none = {"load_pretrained": False, "pretrained": None, "load_finetuned": False, "finetuned": None}
    kept = {key: value for key, value in model.items() if key != "pretrained_stage1"}
    return Origin({**kept, **none}, dict(preprocess or {}))


def _told_by_metadata(path: Path) -> Origin | None:
    """What `export` wrote into a .safetensors file."""
    for file in (path, path / EXTRA, path / WEIGHTS):
        told = _metadata(file).get("lavis_lite") if file.suffix == ".safetensors" and file.is_file() else None
        if told and (section := json.loads(told)["model"]):
            if section.keys() <= {"arch", "model_type"}:  # a packaged checkpoint names its type only
                return _of_type(section["arch"], section["model_type"])
            origin = Origin(**json.loads(told))
            return _with_own_language_model(origin, path) if file.name == EXTRA else origin
    return None


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{file} cannot be read as safetensors ({fault}); it is damaged.") from fault


def _with_own_language_model(origin: Origin, folder: Path) -> Origin:
    """The language model that lies in a folder of transformers' format, where its own source is not on this machine."""
    section = typed_section(origin.model)
    if not hasattr(section, "language_model_name") or section.llm_args is not None or weights.Need(
            "llm_model", section.language_model_name()).found():
        return origin
    keys = section_of(json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
    taken: dict[str, Any] = {key: keys[key] for key in ("llm_args", "llm_tokenizer", "llm_family") if key in keys}
    return Origin({**origin.model, **taken}, origin.preprocess)


def _told_by_yaml(path: Path) -> Origin | None:
    """The config.yaml of a run's checkpoint, which holds every setting that differs from its class's default."""
    if not (path / CONFIG).is_file():
        return None
    content = read_yaml(path / CONFIG)
    if faults := import_plugins(content.get("imports") or [], path / CONFIG):
        raise Faults(f"{path / CONFIG}:", faults)
    return _afresh(content["model"], content.get("preprocess")) if content.get("model") else None


def _told_by_transformers(path: Path) -> Origin | None:
    """The config.json of a folder in transformers' format."""
    if not (path / "config.json").is_file():
        return None
    return Origin(section_of(json.loads((path / "config.json").read_text(encoding="utf-8")), path))


def _told_by_pth(path: Path) -> Origin | None:
    """The configuration inside a .pth, as LAVIS' runner and `export_lavis` put it there."""
    if path.suffix not in (".pth", ".pt") or not path.is_file():
        return None
    read_tensors(path)  # refuses what holds more than plain containers and tensors
    content = torch.load(path, map_location="cpu", weights_only=True)
    config = content.get("config") if isinstance(content, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "arch" not in model:
        return None
    if "lavis_lite" in content:  # written by `export_lavis`: a whole section
        return _afresh(model, config.get("preprocess") if config else None)
    arch, kind = str(model["arch"]), str(model.get("model_type"))
    return _of_type(arch, kind) if arch in registry.list_models() and kind in model_types(arch) else None


def typed_section(content: Mapping[str, Any]) -> Any:
    """A section `model` as its arch's config class.

    Raises:
        Faults: keys or values that do not fit it.
    """
    cls = registry.get_model_class(str(content.get("arch"))).config_class
    checker = Checker(lambda key: "the checkpoint's configuration")
    section = checker.section(cls, dict(content), "model")
    if checker.faults:
        raise Faults("the checkpoint's configuration does not fit:", checker.faults)
    return section


def _unplaced(section: Any) -> Any:
    """The same section without what only concerns a run: on which devices and in how few bits weights are held."""
    changes = {key: None for key in ("llm_quantization", "llm_device_map") if hasattr(section, key)}
    return dataclasses.replace(section, **changes)


# tensors -------------------------------------------------------------------------------------------------------------
def skeleton_of(section: Any) -> Any:
    """The model of a section on the meta device: names and shapes. Of files it needs configurations and tokenizers."""
    changes = {}
    for need in weights.required_weights(section):
        here = need.local() if need.key in ("tokenizer", "llm_model", "llm_tokenizer") else None
        if here is not None and need.value != "mini":
            changes[need.key] = str(here)
    with torch.device("meta"):
        return registry.get_model_class(section.arch).from_config(dataclasses.replace(section, **changes))


def _new_values(skeleton: Any, names: list[str]) -> dict[str, Tensor]:
    """What a new model has where the source's format had no place: stage 1's temperature and captioning head."""
    generator = torch.Generator().manual_seed(0)
    own, spread = skeleton.state_dict(), skeleton.qformer.cfg.initializer_range
    values = {}
    for name in names:
        shape = own[name].shape
        if len(shape) == 2:
            values[name] = spread * torch.randn(shape, generator=generator)
        elif name == "temp":
            values[name] = torch.full(shape, INITIAL_TEMPERATURE)
        else:
            values[name] = torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    return values


def _fill_frozen(skeleton: Any, section: Any, state: dict[str, Tensor]) -> int:
    """Add to `state` the frozen tensors that it lacks, from the files that the section names; how many these were."""
    lost = [name for name in first_names(skeleton, skeleton.state_dict()) if name not in state]
    if not lost:
        return 0
    afresh = dataclasses.replace(section, load_pretrained=False, load_finetuned=False, qformer_weights=None)
    whole = weights.build_model(afresh).state_dict()
    state.update({name: whole[name] for name in lost})
    return len(lost)
