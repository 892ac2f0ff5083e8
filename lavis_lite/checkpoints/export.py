"""Write a model in transformers' format, in LAVIS' or in this project's own; all whole or not at all.

What a format has no place for goes into a side file (`lavis_lite_extra.safetensors`), so that the way there and back
gives every tensor again, bit for bit, unless another dtype is requested.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lavis_lite import __version__
from lavis_lite.checkpoints.formats.hf_config import INSTRUCT, LLAVA, RETRIEVAL, generation_config, hf_class, hf_config
from lavis_lite.checkpoints.formats.hf_processor import language_tokenizer, pads_both_texts_left, save_processor
from lavis_lite.checkpoints.formats.key_maps import WITHOUT_PLACE, language_kind, to_hf, to_lavis
from lavis_lite.checkpoints.formats.language_fit import vocabulary_names, with_words
from lavis_lite.checkpoints.formats.llava import to_llava
from lavis_lite.checkpoints.formats.model_card import CARD, model_card
from lavis_lite.checkpoints.manifest import CONFIG as CONFIG
from lavis_lite.checkpoints.manifest import RECORD, WEIGHTS
from lavis_lite.checkpoints.reading import EXTRA
from lavis_lite.errors import CheckpointError, listed
from lavis_lite.io import atomic
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.provenance import WeightRecord
from lavis_lite.models.vision_language.model import VisionLanguage

SHARD_SIZE = "5GB"
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass
class ExportReport:
    """What was written.

    Attributes:
        path: the file or folder.
        layout: "Hugging Face", "LAVIS" or "lavis_lite".
        tensors: how many, the side file's left out.
        size: bytes of them.
        aside: names (ours) that went into the side file.
        notes: sentences on what is not the same there.
        limits: sentences on what transformers' own classes do not do with it.
    """

    path: Path
    layout: str
    tensors: int
    size: int
    aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.path} ({self.layout}): {self.tensors} tensors, {self.size / 2**20:.1f} MiB"
        if self.aside:
            text += f", {len(self.aside)} more in {EXTRA}"
        return "\n".join([text, *(f"note: {line}" for line in self.notes), *(f"limit: {line}" for line in self.limits)])


@dataclass
class CheckpointMetadata:
    """What a model was built from; kept beside its weights so that it can be built again.

    Attributes:
        model: section `model`, plain containers.
        preprocess: section `preprocess`, plain containers.
    """

    model: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)

    def image(self) -> dict[str, Any]:
        """Parameters of the image processor for evaluation."""
        return dict((self.preprocess.get("vis_processor") or {}).get("eval") or {})


Origin = CheckpointMetadata
"""its name until version 0.2"""


def export_hf(model: BaseModel, folder: str | Path, *, state: Mapping[str, Tensor] | None = None,
              dtype: torch.dtype | None = None, origin: CheckpointMetadata | None = None,
              shard_size: int | str = SHARD_SIZE, source: str | None = None) -> ExportReport:
    """Write a folder that `from_pretrained` of transformers' BLIP-2, InstructBLIP or LLaVA and processors loads.

    Args:
        model: stage 1, stage 2, InstructBLIP or LLaVA; on the meta device when `state` brings the tensors.
        folder: must not exist.
        state: the model's tensors, tied ones under one name at least; None: those in the model.
        dtype: of floating-point tensors; None: each as it is.
        origin: what the model was built from.
        shard_size: most bytes of one file, such as "5GB".
        source: the checkpoint that the weights were read from, for the model card.

    Raises:
        CheckpointError: the folder exists, tensors are missing, or transformers' classes cannot do what the model does.
    """
    kind = hf_class(written_by_transformers(model))
    _check_plain(model, "transformers'")
    tensors = first_names(model, model.state_dict() if state is None else state)
    _check_whole(model, tensors)
    tokenizer, image_token, words = None, None, None
    if kind != RETRIEVAL:
        tokenizer, image_token = language_tokenizer(model)
        tensors = with_words(model, tensors, image_token + 1)
        words = len(tensors[min(vocabulary_names(model)[0] & tensors.keys())])
    config = hf_config(model, image_token, words)
    translated = to_llava(tensors) if kind == LLAVA else to_hf(tensors, kind == INSTRUCT)
    stored = cast(translated.tensors, dtype)
    config["dtype"] = _name_of_dtype(stored)
    aside = {name: tensors[name] for name in translated.unknown}
    _check_aside(aside, model)
    path, origin, notes = _new_path(folder), origin or CheckpointMetadata(), _notes(model, config)
    limits = _limits(kind, tokenizer)
    card = model_card(model, config, section=origin.model, source=source, notes=[*notes, *limits],
                      parameters=sum(tensor.numel() for tensor in stored.values()))
    with _written(path) as temporary:
        temporary.mkdir()
        _write_json(temporary / "config.json", config)
        (temporary / CARD).write_text(card, encoding="utf-8")
        if kind != RETRIEVAL:
            _write_json(temporary / "generation_config.json", generation_config(config["text_config"]))
        save_processor(model, temporary, tokenizer, origin.image())
        _write_shards(stored, temporary, shard_size)
        _write(cast(aside, dtype), temporary / EXTRA, _file_metadata(origin))
    return ExportReport(path, "Hugging Face", len(stored), _size(stored), sorted(aside), notes, limits)


def export_lavis(model: BaseModel, path: str | Path, *, state: Mapping[str, Tensor] | None = None, whole: bool = False,
                 dtype: torch.dtype | None = None, origin: CheckpointMetadata | None = None,
                 besides: Container[str] = ()) -> ExportReport:
    """Write a .pth as LAVIS' runner does: {"model": tensors under LAVIS' names}, readable with weights_only.

    Args:
        model, state, dtype, origin: as `export_hf`.
        path: must not exist.
        whole: frozen parts too.
        besides: names to write although they are frozen.

    Raises:
        CheckpointError: the file exists, tensors are missing, or LAVIS has no class for the model or no name for one.
    """
    model = as_blip2(model, "lavis")
    _check_plain(model, "LAVIS'")
    tensors = _selected(model, state, whole, besides)
    translated = to_lavis(tensors, language_kind(model) or "opt", model.qformer.cfg.max_positions)
    if translated.unknown:
        raise CheckpointError(f"LAVIS has no name for {listed(translated.unknown)}.")
    stored, path, origin = cast(translated.tensors, dtype), _new_path(path), origin or CheckpointMetadata()
    content = {"model": stored, "config": {"model": origin.model, "preprocess": origin.preprocess},
               "lavis_lite": __version__}
    with _written(path) as temporary:
        torch.save(content, temporary)
    return ExportReport(path, "LAVIS", len(stored), _size(stored))


def export_lite(model: BaseModel, path: str | Path, *, state: Mapping[str, Tensor] | None = None, whole: bool = False,
                dtype: torch.dtype | None = None, origin: CheckpointMetadata | None = None,
                besides: Container[str] = (), record: WeightRecord | None = None) -> ExportReport:
    """Write this project's own layout: a folder as a run's checkpoints are, or one .safetensors file.

    Args:
        model, state, dtype, origin: as `export_hf`.
        path: must not exist; ends in .safetensors for a single file.
        whole: frozen parts too.
        besides: names to write although they are frozen.
        record: where the weights had come from before they were trained; None: the model's own record, if it has one.

    Raises:
        CheckpointError: it exists, or tensors are missing.
    """
    stored = cast(_selected(model, state, whole, besides), dtype)
    path, origin = _new_path(path), origin or CheckpointMetadata()
    metadata = _file_metadata(origin, record or model.weight_record)
    with _written(path) as temporary:
        if path.suffix == ".safetensors":
            _write(stored, temporary, metadata)
        else:
            temporary.mkdir()
            _write(stored, temporary / WEIGHTS, metadata)
            text = yaml.safe_dump({"model": origin.model, "preprocess": origin.preprocess}, sort_keys=False)
            (temporary / CONFIG).write_text(text, encoding="utf-8")
    return ExportReport(path, "lavis_lite", len(stored), _size(stored))


# tensors ------------------------------------------------------------------------------------------------------------
def first_names(model: BaseModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each tied one under its first name in the model only."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(value), name) for name, value in
             model.named_parameters(remove_duplicate=False)}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found.setdefault(names.get(name, name), tensor)
    return found


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Detached copies-on-need on the CPU that own their memory; floating-point ones in `dtype`."""
    made = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else None)
        alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        made[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return made


def _selected(model: BaseModel, state: Mapping[str, Tensor] | None, whole: bool,
              besides: Container[str]) -> dict[str, Tensor]:
    tensors = first_names(model, model.state_dict() if state is None else state)
    if whole:
        _check_whole(model, tensors)
        return tensors
    names = first_names(model, model.checkpoint_state())
    _check_whole(model, tensors, names)
    return {name: tensors[name] for name in tensors if name in names or name in besides}


def as_blip2(model: BaseModel, to: str) -> Blip2Base:
    """Refuse a model if the readers of a format (hf, lavis) do not have its class.

    Raises:
        CheckpointError: it is not a BLIP-2 model.
    """
    if not isinstance(model, Blip2Base):
        where = "LAVIS" if to == "lavis" else "transformers"
        raise CheckpointError(f"{where} has no such class as {type(model).__name__}: only BLIP-2 and InstructBLIP "
                              "models can be written in its format. `--to lite` takes every model.")
    return model


def written_by_transformers(model: BaseModel) -> BaseModel:
    """Refuse a model of a class that transformers does not have.

    Raises:
        CheckpointError: it is neither a BLIP-2 model nor a `vision_language`.
    """
    return model if isinstance(model, VisionLanguage) else as_blip2(model, "hf")


def _check_plain(model: BaseModel, owner: str) -> None:
    """A language model with adapters has names of its own, and quantised weights are not numbers to others."""
    options = getattr(getattr(model, "language_model", None), "load_options", None)
    for key, attribute in (("lora", "lora"), ("llm_quantization", "quantization")):
        if getattr(options, attribute, None) is not None:
            raise CheckpointError(f"model.{key}: {owner} BLIP-2 cannot hold this language model as it is; "
                                  "`convert` adds adapters to its weights, and `--to lite` keeps what trained.")


def _check_aside(names: Iterable[str], model: BaseModel) -> None:
    """Refuse tensors that transformers' class would do without although the model's outputs need them."""
    strange = [name for name in names if not any(re.fullmatch(pattern, name) for pattern in WITHOUT_PLACE)]
    if strange:
        raise CheckpointError(f"transformers has no such class as {type(model).__name__}: its BLIP-2 has no place for "
                              f"{len(strange)} tensors ({listed(strange)}). `--to lite` takes every model.")


def _check_whole(model: BaseModel, tensors: Mapping[str, Tensor], names: Mapping[str, Any] | None = None) -> None:
    wanted = first_names(model, model.state_dict()) if names is None else names
    lost = [name for name in wanted if name not in tensors or tensors[name].is_meta]
    if lost:
        parts = ", ".join(sorted({name.split(".")[0] for name in lost}))
        raise CheckpointError(f"{len(lost)} tensors of the model have no values ({parts}; first: {lost[0]}), so that "
                              "it cannot be written.")


def _limits(kind: str, tokenizer: Any) -> list[str]:
    if kind != INSTRUCT or not pads_both_texts_left(tokenizer):
        return []
    return [f"InstructBlipProcessor pads the Q-Former's text on the left, as it pads the language model's: it follows "
            f"{type(tokenizer).__name__}, which pads on the right by default. In a batch of prompts of "
            "unequal length the Q-Former then reads shifted positions; give it prompts of one length, or one at a time"]


def _notes(model: BaseModel, config: Mapping[str, Any]) -> list[str]:
    if not isinstance(model, Blip2Base):
        return []
    own, theirs = model.ln_vision.eps, config["vision_config"]["layer_norm_eps"]
    if own == theirs:
        return []
    return [f"ln_vision has epsilon {own:g} here and {theirs:g} there, where one number serves the whole vision model; "
            f"normalised features of variance v differ by the factor 1 + {(own - theirs) / 2:.1e} / v "
            f"(model.ln_vision_eps={theirs:g} computes the same here)"]


# files --------------------------------------------------------------------------------------------------------------
def _new_path(path: str | Path) -> Path:
    """A path at which nothing is yet."""
    path = Path(path).expanduser()
    if path.exists():
        raise CheckpointError(f"{path} is there already and is not overwritten; remove it or choose another name.")
    return path


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`atomic.atomic_path`; a failure becomes one CheckpointError."""
    try:
        with atomic.atomic_path(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}. Nothing was left there.") from error


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file(dict(tensors), path, {"format": "pt", **metadata})
    path.chmod(0o644)  # safetensors writes for the owner only


def _write_shards(tensors: Mapping[str, Tensor], folder: Path, shard_size: int | str) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(tensors), filename_pattern="model{suffix}.safetensors",
                                              max_shard_size=shard_size)
    for name, keys in plan.filename_to_tensors.items():
        _write({key: tensors[key] for key in keys}, folder / name, {})
    if plan.is_sharded:
        _write_json(folder / f"{WEIGHTS}.index.json",
                    {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _file_metadata(origin: CheckpointMetadata, record: WeightRecord | None = None) -> dict[str, str]:
    """Metadata of a file: the model's sections, and where its weights had come from."""
    content = {"lavis_lite": json.dumps({"model": origin.model, "preprocess": origin.preprocess})}
    return content | ({RECORD: json.dumps(record.to_dict())} if record is not None and record.sources else {})


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _name_of_dtype(tensors: Mapping[str, Tensor]) -> str:
    """What `from_pretrained` shall make of everything: their common dtype, or float32, in which nothing is lost."""
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return DTYPE_NAMES.get(found.pop(), "float32") if len(found) == 1 else "float32"
