"""What can be built, by name, and models ready for use: LAVIS' `load_model_and_preprocess` and its companions.

Importing this module, and listing, load neither torch nor any model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.registry import registry

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel
    from lavis_lite.processors.base import BaseProcessor

Processors = dict[str, "BaseProcessor"]
"""the processors of training ("train") and of everything else ("eval")"""
_log = logging.getLogger(__name__)


def list_models(pattern: str = "*") -> list[str]:
    """Registered model names (archs) that match a shell pattern such as "blip2*", sorted."""
    return [name for name in registry.list_models() if fnmatchcase(name, pattern)]


class ModelZoo:
    """All archs with their model types: iterate over (arch, [types]), print it as a table, take its length."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        from lavis_lite.config.compose import model_types  # YAML; a list of names needs none

        for arch in list_models():
            yield arch, list(model_types(arch))

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        head = f"{'Architectures':<30} Types"
        return "\n".join([head, "-" * len(head), *(f"{arch:<30} {', '.join(types)}" for arch, types in self)])


model_zoo = ModelZoo()


def load_model_and_preprocess(name: str, model_type: str, is_eval: bool = False, device: Any = "cpu", *,
                              checkpoint: str | Path | None = None, dtype: Any = None, device_map: Any = None,
                              quantization: str | None = None) -> tuple[BaseModel, Processors, Processors]:
    """A model with its weights, and the processors that go with it.

    Args:
        name: arch, such as "blip2_opt" (`list_models`).
        model_type: one of its types, such as "mini" (`model_zoo`).
        is_eval: in eval mode; else in training mode. Which weights are frozen is the type's affair either way.
        device: "cpu", "cuda", "cuda:1", "auto" (a GPU where there is one), or a torch.device.
        checkpoint: path, URL or hub name of weights to load in place of the type's own.
        dtype: "fp32", "bf16", "fp16" or a torch.dtype: of the frozen parts, and with is_eval of the whole model. None:
            what the type says, and fp32 on a CPU.
        device_map: spreads the language model over several GPUs, see `llm_device_map` of the model's section.
        quantization: "8bit" or "4bit" weights for the frozen language model.

    Returns:
        (model, vis_processors, txt_processors); each of the latter is {"train": ..., "eval": ...}: an image processor
        turns a PIL image into float32[3,H,W], a text processor a string into a string.

    Raises:
        RegistryError, ConfigError: an unknown name, or arguments that do not go together.
        DataError: files are neither here nor can be fetched; all of them are listed before anything is built.
        CheckpointError: a checkpoint does not fit the model.
    """
    from lavis_lite.config.compose import model_sections
    from lavis_lite.loading import load_section

    section, preprocess = model_sections(name, model_type)
    processors = load_preprocess(preprocess)
    model = load_section(section, is_eval=is_eval, device=device, checkpoint=checkpoint, dtype=dtype,
                         device_map=device_map, quantization=quantization, say=_log.info)
    return model, *processors


def load_model(name: str, model_type: str, is_eval: bool = False, device: Any = "cpu",
               checkpoint: str | Path | None = None, *, dtype: Any = None, device_map: Any = None,
               quantization: str | None = None) -> BaseModel:
    """A model alone; arguments and errors as `load_model_and_preprocess`."""
    return load_model_and_preprocess(name, model_type, is_eval, device, checkpoint=checkpoint, dtype=dtype,
                                     device_map=device_map, quantization=quantization)[0]


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
    from lavis_lite.processors.build import build_processor

    def pair(kind: str) -> Processors:
        given: Mapping[str, Any] = config.get(kind) or {}
        return {mode: build_processor(given.get(mode), f"preprocess.{kind}.{mode}") for mode in ("train", "eval")}

    return pair("vis_processor"), pair("text_processor")
