"""Device and numeric precision of a run, decided once."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`run.device` -> the device of this process: "auto" takes the GPU of its local rank where there is one.

    Raises:
        ConfigError: an unknown device, or CUDA without a CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"run.device: {name!r} is not a device; use auto, cpu or cuda.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("run.device is cuda, but this torch sees no CUDA device; set run.device=auto.")
        return torch.device("cuda", local_rank if device.index is None else device.index)
    return device


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (elsewhere bf16 is emulated and slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = getattr(torch.ops, "mkldnn", None)
    return bool(mkldnn is not None and torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Precision:
    """Autocast dtype of a run; fp32 means no autocast. Only fp16 needs its loss scaled."""

    device_type: str
    dtype: torch.dtype

    @classmethod
    def from_run(cls, cfg: RunConfig, device: torch.device) -> Precision:
        """`amp_dtype` decides; "auto" follows `amp`: bf16 where the device has it, else fp16 (on a CPU: fp32).

        Raises:
            ConfigError: fp16 on a CPU, which lacks its kernels.
        """
        name: str = cfg.amp_dtype
        if name == "auto":
            fallback = "fp16" if device.type == "cuda" else "fp32"
            name = ("bf16" if bf16_is_native(device) else fallback) if cfg.amp else "fp32"
        if name == "fp16" and device.type == "cpu":
            raise ConfigError("run.amp_dtype: fp16 does not train on a CPU; set run.amp_dtype=bf16 or fp32.")
        return cls(device.type, DTYPES[name])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model runs."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler, switched off unless the dtype is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)
