"""What can be built, by name, and models ready for use: LAVIS' `load_model_and_preprocess` and its companions.

Importing this module, and listing, load neither torch nor any model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lavis_lite.errors import ConfigError
from lavis_lite.registry import load_plugins, registry

if TYPE_CHECKING:
    from typing import TypedDict

    import torch
    from typing_extensions import Unpack

    from lavis_lite.models.base import BaseModel
    from lavis_lite.models.blip2.llm import Blip2LLM
    from lavis_lite.models.blip2.stage1 import Blip2ImageTextMatching, Blip2Qformer
    from lavis_lite.processors.base import BaseProcessor

    Device = str | torch.device
    File = str | Path | None

    class LoadOptions(TypedDict, total=False):
        """Keyword arguments of `load_model_and_preprocess`, for its typed signatures."""

        dtype: str | torch.dtype | None
        device_map: str | Mapping[str, Any] | None
        quantization: str | None
        allow_untrained: bool
        allow_non_finite: bool

WritingArch = Literal["blip2_llm", "blip2_opt", "blip2_t5", "blip2_t5_instruct", "blip2_vicuna",
                      "blip2_vicuna_instruct"]
Stage1Arch = Literal["blip2", "blip2_feature_extractor"]
MatchingArch = Literal["blip2_image_text_matching"]
"""archs by the class that loading them gives, for type checkers"""

Processors = dict[str, "BaseProcessor"]
"""the processors of training ("train") and of everything else ("eval")"""
_log = logging.getLogger(__name__)


def list_models(pattern: str = "*") -> list[str]:
    """Registered model names (archs) that match a shell pattern such as "blip2*", sorted; those of plugins too."""
    load_plugins()
    return [name for name in registry.list_models() if fnmatchcase(name, pattern)]


class ModelZoo:
    """All archs with their model types: iterate over (arch, [types]), print it as a table, take its length."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        from lavis_lite.config.named import model_types  # YAML; a list of names needs none

        for arch in list_models():
            yield arch, list(model_types(arch))

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        head = f"{'Architectures':<30} Types"
        return "\n".join([head, "-" * len(head), *(f"{arch:<30} {', '.join(types)}" for arch, types in self)])


model_zoo = ModelZoo()


@dataclass(frozen=True)
class ZooRow:
    """What is known about a model type.

    Attributes:
        arch, model_type: as `load_model` takes them.
        what: the first comment of its file.
        size: parameters in all, and those that train; "" if not counted.
        weights: where its checkpoint comes from (URL, path, packaged name); "": it starts without one.
        language_model: hub name or packaged name; "": it has none.
        paper: scores in the papers, reached with the released weights; "" where they have none.
        status: whether it runs here without a download.
    """

    arch: str
    model_type: str
    what: str
    size: str
    weights: str
    language_model: str
    paper: str
    status: str


RUNS_OFFLINE, NOT_RUN = "runs offline", "not run on released files"


def describe(pattern: str = "*") -> list[ZooRow]:
    """A row for every model type of the archs that match a shell pattern. Imports no model."""
    from lavis_lite.config.layers import read_yaml
    from lavis_lite.config.named import CONFIGS, MODEL_CONFIG_HOME, model_types, type_content

    known = read_yaml(CONFIGS / "zoo.yaml")
    rows = []
    for arch in list_models(pattern):
        facts = known.get(MODEL_CONFIG_HOME.get(arch, arch)) or {}
        for model_type, path in model_types(arch).items():
            model = type_content(arch, model_type).get("model") or {}
            rows.append(_row(arch, model_type, path, model, facts.get(model_type) or {}))
    return rows


def _row(arch: str, model_type: str, path: Path, model: Mapping[str, Any], facts: Mapping[str, str]) -> ZooRow:
    start = model.get("finetuned") if model.get("load_finetuned") else None
    if start is None and model.get("load_pretrained", True):
        start = model.get("pretrained")
    language_model = next((str(model[key]) for key in ("llm_model", "opt_model", "t5_model") if model.get(key)), "")
    offline = model.get("vit_model") == "mini" and "://" not in str(start)
    return ZooRow(arch, model_type, _first_comment(path), facts.get("size", ""), str(start or ""), language_model,
                  facts.get("paper", ""), RUNS_OFFLINE if offline else NOT_RUN)


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ").rstrip() for line in takewhile(lambda line: line.startswith("#"), lines))


@overload
def load_model_and_preprocess(
        name: WritingArch, model_type: str, is_eval: bool = ..., device: Device = ..., *, checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> tuple[Blip2LLM, Processors, Processors]: ...


@overload
def load_model_and_preprocess(
        name: Stage1Arch, model_type: str, is_eval: bool = ..., device: Device = ..., *, checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> tuple[Blip2Qformer, Processors, Processors]: ...


@overload
def load_model_and_preprocess(
        name: MatchingArch, model_type: str, is_eval: bool = ..., device: Device = ..., *, checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> tuple[Blip2ImageTextMatching, Processors, Processors]: ...


@overload
def load_model_and_preprocess(
        name: str | None = ..., model_type: str | None = ..., is_eval: bool = ..., device: Device = ...,
        *, checkpoint: File = ..., run: File = ..., weights: str | None = ...,
        **options: Unpack[LoadOptions]) -> tuple[BaseModel, Processors, Processors]: ...


def load_model_and_preprocess(name: str | None = None, model_type: str | None = None, is_eval: bool = False,
                              device: Any = "cpu", *, run: str | Path | None = None,
                              checkpoint: str | Path | None = None, weights: str | None = None, dtype: Any = None,
                              device_map: Any = None, quantization: str | None = None, allow_untrained: bool = False,
                              allow_non_finite: bool = False) -> tuple[BaseModel, Processors, Processors]:
    """A model with its weights, and the processors that go with it: of the zoo by name and type, or of a run.

    Args:
        name: arch, such as "blip2_opt" (`list_models`).
        model_type: one of its types, such as "mini" (`model_zoo`).
        is_eval: in eval mode; else in training mode. Which weights are frozen is the type's affair either way.
        device: "cpu", "cuda", "cuda:1", "auto" (a GPU where there is one), or a torch.device.
        run: in place of name and type, a run folder, or a folder above runs (the one that saved last).
        checkpoint: path, URL or hub name of weights to load in place of the type's own. With `run`: "best" (the
            default), "last" or "step_N".
        weights: with `run`, load the weights that this hook keeps, such as "ema"; None: the trained ones.
        dtype: "fp32", "bf16", "fp16" or a torch.dtype: of the frozen parts, and with is_eval of the whole model. None:
            what the type says, and fp32 on a CPU.
        device_map: spreads the language model over several GPUs, see `llm_device_map` of the model's section.
        quantization: "8bit" or "4bit" weights for the frozen language model.
        allow_untrained: with is_eval, build a model although no checkpoint has all of its trainable weights.
        allow_non_finite: load weights that hold NaN or infinity, which is an error otherwise.

    Returns:
        (model, vis_processors, txt_processors); each of the latter is {"train": ..., "eval": ...}: an image processor
        turns a PIL image into float32[3,H,W], a text processor a string into a string.

    Raises:
        RegistryError, ConfigError: an unknown name, or arguments that do not go together.
        DataError: files are neither here nor can be fetched; all of them are listed before anything is built.
        CheckpointError: a checkpoint is missing or does not fit the model, or with is_eval, trainable weights are in
            none.
    """
    from lavis_lite.zoo.loading import load_section

    section, preprocess, source = _sections(name, model_type, run, checkpoint, weights)
    processors = load_preprocess(preprocess)
    model = load_section(section, is_eval=is_eval, device=device, checkpoint=source, dtype=dtype,
                         device_map=device_map, quantization=quantization, log=_log_line,
                         allow_untrained=allow_untrained, allow_non_finite=allow_non_finite)
    return model, *processors


def _log_line(line: str) -> None:
    """A line of loading; notes are shown even where a program sets up no logging."""
    _log.log(logging.WARNING if line.startswith("note: ") else logging.INFO, line)


def _sections(name: str | None, model_type: str | None, run: str | Path | None,
              checkpoint: str | Path | None, weights: str | None) -> tuple[Any, Any, str | Path | None]:
    """(model section, preprocess section, checkpoint that takes the place of the section's own)."""
    if run is None:
        if name is not None and model_type is None:
            from lavis_lite.config.named import model_types

            raise ConfigError(f"{name!r} needs a type too: {', '.join(model_types(name))}.")
        if name is None or model_type is None:
            raise ConfigError("name a model and its type, such as load_model(\"blip2_opt\", \"mini\"), or a run: "
                              "load_model(run=\"output/blip2/stage2_opt\").")
        if weights is not None:
            raise ConfigError(f"weights={weights!r} chooses weights of a run: name it, as run=RUN.")
        from lavis_lite.config.compose import model_sections

        return (*model_sections(name, model_type), checkpoint)
    if name is not None or model_type is not None:
        raise ConfigError(f"run={str(run)!r} brings its own model and type; leave name and model_type out.")
    from lavis_lite import runs

    chosen = runs.find_checkpoint(run, None if checkpoint is None else str(checkpoint))
    chosen = replace(chosen, weights=weights or "")
    _log.info("loading %s", chosen.describe())
    return (*runs.model_sections(chosen), None)


@overload
def load_model(
        name: WritingArch, model_type: str, is_eval: bool = ..., device: Device = ..., checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> Blip2LLM: ...


@overload
def load_model(
        name: Stage1Arch, model_type: str, is_eval: bool = ..., device: Device = ..., checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> Blip2Qformer: ...


@overload
def load_model(
        name: MatchingArch, model_type: str, is_eval: bool = ..., device: Device = ..., checkpoint: File = ...,
        **options: Unpack[LoadOptions]) -> Blip2ImageTextMatching: ...


@overload
def load_model(
        name: str | None = ..., model_type: str | None = ..., is_eval: bool = ..., device: Device = ...,
        checkpoint: File = ..., *, run: File = ..., weights: str | None = ...,
        **options: Unpack[LoadOptions]) -> BaseModel: ...


def load_model(name: str | None = None, model_type: str | None = None, is_eval: bool = False, device: Any = "cpu",
               checkpoint: str | Path | None = None, *, run: str | Path | None = None, weights: str | None = None,
               dtype: Any = None, device_map: Any = None, quantization: str | None = None,
               allow_untrained: bool = False, allow_non_finite: bool = False) -> BaseModel:
    """A model without its processors; arguments and errors are those of `load_model_and_preprocess`.

    With `is_eval=False` (the default, as in LAVIS) the model is for training, so trainable parts may still be random.
    With `is_eval=True` random trainable parts are refused unless `allow_untrained` is true.
    """
    return load_model_and_preprocess(name, model_type, is_eval, device, run=run, checkpoint=checkpoint, weights=weights,
                                     dtype=dtype, device_map=device_map, quantization=quantization,
                                     allow_untrained=allow_untrained, allow_non_finite=allow_non_finite)[0]


def load_preprocess(config: Any) -> tuple[Processors, Processors]:
    """The processors that a `preprocess` section describes.

    Args:
        config: with `vis_processor` and `text_processor`, each with `train` and `eval`: {name: ..., **parameters}; a
            mapping (a dict, or what OmegaConf loads) or a section of ours. What is absent leaves items as they are.

    Returns:
        (vis_processors, txt_processors), as `load_model_and_preprocess`.

    Raises:
        RegistryError, ConfigError: a processor that is not known, or parameters that it does not have.
    """
    from lavis_lite.processors.base import build_processor

    def pair(kind: str) -> Processors:
        given: Mapping[str, Any] = config.get(kind) or {}
        return {mode: build_processor(given.get(mode), f"preprocess.{kind}.{mode}") for mode in ("train", "eval")}

    return pair("vis_processor"), pair("text_processor")
