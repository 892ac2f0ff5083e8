"""A model section and a caller's options (device, dtype, checkpoint, quantisation) -> a model ready for use.

Every option is checked, and every file is looked for, before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.schema import ModelConfig
from lavis_lite.device import DTYPES, pick_device
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.provenance import refuse_untrained

SPELLINGS = {"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
REMEDIES = ("Name weights with checkpoint=PATH, or a run with run=RUN (on the command line --checkpoint, --run). "
           "allow_untrained=True (--allow-untrained) builds the model with random weights.")
"""what to do if an untrained model is loaded"""


def load_section(section: ModelConfig, *, is_eval: bool = False, device: Any = "cpu",
                 checkpoint: str | Path | None = None, dtype: Any = None, device_map: Any = None,
                 quantization: str | None = None, log: Callable[[str], None] | None = None,
                 allow_untrained: bool = True, allow_non_finite: bool = False) -> BaseModel:
    """Build the model of a section; arguments as `lavis_lite.zoo.load_model_and_preprocess`.

    Args:
        section: of the model's `config_class`.
        log: receives one sentence on what was loaded.
        allow_untrained: if false, trainable weights of a model with is_eval must come from a checkpoint.
        allow_non_finite: load weights that hold NaN or infinity too.

    Raises:
        CheckpointError: they do not; see `refuse_untrained`.
    """
    where = pick_device(device, key="device")
    wanted = None if dtype is None else dtype_name(dtype)
    changes = {**({} if checkpoint is None else section.starting_from(checkpoint)),
               **_language_options(section, device_map, quantization), **precisions(section, where, wanted, is_eval)}
    if allow_non_finite:
        changes["allow_non_finite"] = True
    model = build_model(section.replaced(**changes), log)
    if is_eval and not allow_untrained:
        refuse_untrained(model, REMEDIES)
    model.train(not is_eval)
    whole = DTYPES[wanted] if is_eval and wanted else None
    return move_model(model, where, whole, language_model_stays=device_map is not None or quantization is not None)


def dtype_name(dtype: Any) -> str:
    """fp32 | fp16 | bf16, from these, from torch's names or from a torch.dtype.

    Raises:
        ConfigError: another one.
    """
    text = str(dtype).removeprefix("torch.")
    name = SPELLINGS.get(text, text)
    if name not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)} (or torch's dtypes of these names).")
    return name


def precisions(section: ModelConfig, device: torch.device, dtype: str | None, is_eval: bool) -> dict[str, Any]:
    """The section's precision keys for a device and a requested dtype.

    Raises:
        ConfigError: fp16 on a CPU, or half precision for weights that train.
    """
    on_cpu = device.type == "cpu"
    if dtype == "fp16" and on_cpu:
        raise ConfigError("dtype: fp16 arithmetic on a CPU is slow and incomplete; use dtype='bf16' or leave it out "
                          "(fp32), or load the model on a GPU with device='cuda'.")
    parts = {key: getattr(section, key) for key in ("vit_precision", "llm_precision") if key in section}
    if not getattr(section, "freeze_vit", True):
        parts.pop("vit_precision", None)  # its weights train: they are fp32
    if dtype is not None:
        if dtype != "fp32" and not parts and not is_eval:
            raise ConfigError(f"dtype: every part of {section.arch}/{section.model_type} trains, and {dtype} weights "
                              "cannot be trained. Leave dtype out (run.amp=true gives half-precision arithmetic), or "
                              "load with is_eval=True.")
        return dict.fromkeys(parts, dtype)
    return {key: "fp32" if on_cpu and value in ("auto", "fp16") else value for key, value in parts.items()}


def _language_options(section: ModelConfig, device_map: Any, quantization: str | None) -> dict[str, Any]:
    """The section's keys for a language model that is quantised or spread over devices, if requested."""
    changes = {}
    for argument, key, value in (("device_map", "llm_device_map", device_map),
                                 ("quantization", "llm_quantization", quantization)):
        if value is None:
            continue
        if key not in section:
            raise ConfigError(f"{argument}: {section.arch} has no {key} in its section, so there is no frozen language "
                              f"model that {argument}={value!r} could be about; leave it out.")
        changes[key] = value
    return changes


def move_model(model: BaseModel, device: torch.device, dtype: torch.dtype | None,
               language_model_stays: bool) -> BaseModel:
    """Move a model to its device (and dtype), except a language model that has its device and dtype already."""
    if not language_model_stays:
        return model.to(device=device, dtype=dtype)
    language_model = model._modules.pop("language_model")
    try:
        model.to(device=device, dtype=dtype)
    finally:
        model.add_module("language_model", language_model)
    return model
