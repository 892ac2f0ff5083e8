"""From one format of checkpoints to another: what is read, which model it belongs to, what is written.

The model is built on the meta device, so that names and shapes are checked without memory or weights of frozen
parts. Only what a format needs and the source lacks (the frozen parts, in transformers' format) is loaded besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lavis_lite.checkpoints import weights
from lavis_lite.checkpoints.assembly import record_behind
from lavis_lite.checkpoints.export import (
    CheckpointMetadata,
    ExportReport,
    as_blip2,
    export_hf,
    export_lavis,
    export_lite,
    first_names,
    written_by_transformers,
)
from lavis_lite.checkpoints.load import LoadReport, fit_state
from lavis_lite.checkpoints.metadata import find, metadata_of, typed_section
from lavis_lite.checkpoints.reading import read_content, read_extra
from lavis_lite.config.schema import ModelConfig
from lavis_lite.errors import CheckpointError, ConfigError, did_you_mean
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.blip2.stage1 import INITIAL_TEMPERATURE
from lavis_lite.models.language.adapters import merged_state
from lavis_lite.models.provenance import sources_of
from lavis_lite.registry import registry

__all__ = ["Converted", "convert", "find", "metadata_of", "skeleton_of", "typed_section"]

origin_of = metadata_of
"""its name until version 0.2"""
FORMATS = ("hf", "lavis", "lite")
BACKBONES = ("vision_encoder.", "language_model.")
"""what names of the parts begin with that LAVIS loads from files of their own"""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Converted:
    """What a conversion did: what was read, how many frozen tensors came from elsewhere, what was written.

    `left_out` counts frozen tensors of the source that were not written.
    """

    read: LoadReport
    filled: int
    written: ExportReport
    left_out: int = 0

    def __str__(self) -> str:
        lines = [f"read {self.read}"]
        if self.filled:
            lines.append(f"frozen parts: {self.filled} tensors from the files that the model's section names")
        if self.left_out:
            lines.append(f"left out: {self.left_out} frozen tensors, which the files that the model's section names "
                         "have (if these differ, --whole keeps them)")
        return "\n".join([*lines, f"wrote {self.written}"])


def convert(source: str | Path, to: str, out: str | Path, *, model: str | None = None, model_type: str | None = None,
            dtype: str | None = None, whole: bool = False, merge_lora: bool = False,
            allow_non_finite: bool = False) -> Converted:
    """Convert a checkpoint.

    LoRA adapters are added to the weights of the language model for hf and lavis, which have no place for them.

    Args:
        source: a run's checkpoint folder, .pth, .safetensors, a folder in transformers' format, a packaged name, a
            URL, or a repository of the Hugging Face hub.
        to: hf | lavis | lite.
        out: must not exist: a folder; for lavis a .pth; for lite a folder or a .safetensors file.
        model, model_type: what it is a checkpoint of, if the source does not say.
        dtype: fp32 | fp16 | bf16, of everything; None: as it is.
        whole: for lavis and lite: the frozen parts too (transformers' format always has them).
        merge_lora: for lite: add adapters to the language model's weights too, instead of keeping them apart.
        allow_non_finite: convert tensors that hold NaN or infinity too.

    Raises:
        LavisLiteError: nothing there, it does not fit the model, or the format cannot hold it; nothing is written.
    """
    _check(to, dtype, out)
    path = find(source)
    origin = metadata_of(path, model, model_type)
    section = typed_section(origin.model).replaced(allow_non_finite=allow_non_finite)
    merges = getattr(section, "lora", None) is not None and (to != "lite" or merge_lora)
    parts = _merge(section, path, str(source)) if merges else _take(section, path, str(source))
    if to == "hf":
        written_by_transformers(parts.skeleton)
    elif to == "lavis":
        as_blip2(parts.skeleton, to)
    if merges:
        kept = {key: value for key, value in origin.model.items() if key != "lora"}
        origin = CheckpointMetadata(kept, origin.preprocess)
    filled = _fill_frozen(parts, _unplaced(section), path, to, whole)
    chosen = DTYPES[dtype] if dtype else None
    if to == "hf":
        written = export_hf(parts.skeleton, out, state=parts.state, dtype=chosen, origin=origin, source=str(source))
    elif to == "lavis":
        written = export_lavis(parts.skeleton, out, state=parts.state, whole=whole, dtype=chosen, origin=origin,
                               besides=parts.besides)
    else:
        written = export_lite(parts.skeleton, out, state=parts.state, whole=whole, dtype=chosen, origin=origin,
                              besides=parts.besides, record=record_behind(path))
    left_out = parts.state.keys() - parts.skeleton.trainable_state().keys() - parts.besides
    return Converted(parts.read, filled, written, 0 if whole or to == "hf" else len(left_out))


@dataclass
class _Parts:
    """What is written, before it is in the other format.

    Attributes:
        skeleton: the model on the meta device, without adapters that were merged.
        state: its tensors, under its names.
        read: what reading the source did.
        besides: names that are written although they are frozen: nothing else has their values.
    """

    skeleton: BaseModel
    state: dict[str, Tensor]
    read: LoadReport
    besides: set[str]


def _take(section: ModelConfig, path: Path, source: str) -> _Parts:
    """The tensors of a source as they are."""
    skeleton = skeleton_of(_unplaced(section))
    state, read = fit_state(skeleton, read_content(path), source, extra=read_extra(path),
                            allow_non_finite=section.allow_non_finite)
    state = first_names(skeleton, state)
    is_of_a_run = read.layout == "lavis_lite" and record_behind(path) is not None
    # a run's checkpoint has frozen tensors if no file has them, and a merged one some layers of the language model
    besides = set(state) if is_of_a_run else _without_another(skeleton, section, state, read.layout)
    return _Parts(skeleton, state | _new_values(skeleton, read.not_in_layout), read, besides)


def _without_another(skeleton: BaseModel, section: ModelConfig, state: Mapping[str, Tensor], layout: str) -> set[str]:
    """Frozen tensors of a source that no other file has.

    These are those of parts that the section names no file for, and of parts that the source has some tensors of but
    not all, such as layers of a language model that adapters were added to.
    """
    frozen = first_names(skeleton, skeleton.state_dict()).keys() - skeleton.trainable_state().keys()
    lost = {name.split(".")[0] for name in frozen if name not in state}
    keys = {need.key for need in weights.required_weights(section)}
    named = {part for part, key in (("vision_encoder", "vit_weights"), ("language_model", "llm_model")) if key in keys}
    return {name for name in frozen if name in state and (
        name.split(".")[0] in lost or (layout != "Hugging Face" and name.split(".")[0] not in named))}


def _merge(section: ModelConfig, path: Path, source: str) -> _Parts:
    """The tensors of a source with its adapters added to the language model's weights, in float32.

    Raises:
        CheckpointError: the adapters were trained over quantised weights, so that the sum would compute something else.
    """
    if getattr(section, "llm_quantization", None) is not None:
        raise CheckpointError(f"{source}: its adapters were trained over {section['llm_quantization']} weights; added "
                              "to the weights before quantisation they would not compute the same. `--to lite` keeps "
                              "them apart; to merge them anyway, set llm_quantization: null in its config.yaml.")
    precision = {"llm_precision": "fp32"} if "llm_precision" in section else {}
    full = _started(_unplaced(section), path).replaced(**precision)
    model = weights.build_model(full)
    merged, changed = merged_state(model)
    skeleton = skeleton_of(_unplaced(section).replaced(lora=None))
    brought = {name for name, origin in sources_of(model).items() if origin.path == str(path)}
    kept = {name.replace(".base_layer.", ".") for name in brought} & merged.keys()
    read = LoadReport(source, "lavis_lite", loaded=sorted(kept), notes=[
        f"adapters added to {len(changed)} layers of the language model"])
    return _Parts(skeleton, first_names(skeleton, merged), read, kept | set(changed))


def _started(section: ModelConfig, path: Path) -> ModelConfig:
    """A section for a model that starts from a checkpoint, after `pretrained_stage1` if it names one."""
    return section.replaced(load_pretrained=True, pretrained=str(path), load_finetuned=False)


def _check(to: str, dtype: str | None, out: str | Path) -> None:
    """What can be wrong before anything is read."""
    if to not in FORMATS:
        raise ConfigError(f"--to: unknown format {to!r}; {did_you_mean(to, FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype: {dtype!r}; {did_you_mean(dtype, DTYPES)}")
    path = Path(out).expanduser()
    if path.exists():
        raise CheckpointError(f"--out: {path} is there already and is not overwritten; remove it or choose another "
                              "name.")
    if to == "lavis" and path.suffix != ".pth":
        raise ConfigError(f"--out: {path} must end in .pth for LAVIS; try {path.with_suffix('.pth')}.")


def _unplaced(section: ModelConfig) -> ModelConfig:
    """The same section without what only concerns a run: on which devices and in how few bits weights are held."""
    changes = {key: None for key in ("llm_quantization", "llm_device_map") if key in section}
    return section.replaced(**changes)


# tensors -------------------------------------------------------------------------------------------------------------
def skeleton_of(section: ModelConfig) -> BaseModel:
    """The model of a section on the meta device: names and shapes. Of files it needs configurations and tokenizers."""
    changes = {}
    for need in weights.required_weights(section):
        here = need.local() if need.key in ("tokenizer", "llm_model", "llm_tokenizer") else None
        if here is not None and need.value != "mini":
            changes[need.key] = str(here)
    cls, local = registry.get_model_class(section.arch), section.replaced(**changes)
    try:
        with torch.device("meta"):
            return cls.from_config(local)
    except RuntimeError:
        if issubclass(cls, Blip2Base):
            raise
        return cls.from_config(local)  # a class of another project that reads its weights while it is built


def _new_values(skeleton: BaseModel, names: list[str]) -> dict[str, Tensor]:
    """Initial values of what the source's format cannot hold: stage 1's temperature and captioning head."""
    if not names:
        return {}
    assert isinstance(skeleton, Blip2Base), type(skeleton)
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


def _fill_frozen(parts: _Parts, section: ModelConfig, path: Path, to: str, whole: bool) -> int:
    """Add the frozen tensors that the format needs and the source lacks, from the files that are named for them.

    LAVIS has backbones of its own, and of the rest only what is in the file.

    Returns:
        How many these were.
    """
    needed = first_names(parts.skeleton, parts.skeleton.state_dict())
    lost = [name for name in needed if name not in parts.state and (
        whole or to == "hf" or (to == "lavis" and not name.startswith(BACKBONES)))]
    if not lost:
        return 0
    full = weights.build_model(_started(section, path)).state_dict()
    parts.state.update({name: full[name] for name in lost})
    parts.besides.update(lost)
    return len(lost)
