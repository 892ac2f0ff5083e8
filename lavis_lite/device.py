"""The device and precision that a model computes in, batches moved to it, and random numbers by position."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError, did_you_mean

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
X86_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""torch.cpu's questions about instructions that multiply bf16"""


def pick_device(name: Any, local_rank: int = 0, key: str = "run.device") -> torch.device:
    """A device's name -> the device of this process; "auto": the GPU of its local rank, or Apple's, else the CPU.

    Args:
        name: a name, or a torch.device.
        local_rank: number of the GPU, unless the name has one.
        key: where the name was given, for messages.

    Raises:
        ConfigError: an unknown device, or a GPU that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        hint = did_you_mean(str(name), ("auto", "cpu", "cuda", "cuda:1", "mps"))
        raise ConfigError(f"{key}: {name!r} is not a device; {hint}") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}: mps is not here: torch {torch.__version__} sees no GPU of Apple; use auto or cpu.")
    if device.type != "cuda":
        return device
    number = local_rank if device.index is None else device.index
    if number >= torch.cuda.device_count():
        raise ConfigError(f"{key}: cuda:{number} is not here: torch {torch.__version__} sees "
                          f"{torch.cuda.device_count()} GPUs; use auto or cpu.")
    return torch.device("cuda", number)


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (elsewhere bf16 is emulated and slower than fp32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):  # mkldnn also says yes to CPUs that emulate it
        return any(getattr(torch.cpu, name, lambda: False)() for name in X86_BF16)
    mkldnn = getattr(torch.ops, "mkldnn", None)
    return bool(mkldnn is not None and torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported())


def precision_notes(cfg: RunConfig, device: torch.device) -> list[str]:
    """A note if a run asks for bf16 on a CPU that has no instructions for it."""
    if device.type != "cpu" or bf16_is_native(device):
        return []
    if cfg.amp_dtype == "bf16":
        return ["note: run.amp_dtype=bf16: this CPU only emulates bf16, which is slower than fp32. It has neither "
                "avx512_bf16 nor AMX. Set run.amp_dtype=fp32 unless the arithmetic itself is of interest."]
    if cfg.amp and cfg.amp_dtype == "auto":
        return ["note: run.amp=true has no effect here: this CPU has no instructions for bf16 (avx512_bf16, AMX), so "
                "the run computes in fp32."]
    return []


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


def wants_tf32(cfg: RunConfig) -> bool:
    """Whether a GPU multiplies float32 matrices in TF32: `run.tf32`, or with mixed precision where that is absent.

    TF32 keeps as many bits as fp16, in which LAVIS computes ITC's similarities under `run.amp`.
    """
    mixed = cfg.amp if cfg.amp_dtype == "auto" else cfg.amp_dtype != "fp32"
    return mixed if cfg.tf32 is None else cfg.tf32


def set_tf32(cfg: RunConfig, device: torch.device) -> None:
    """Let a GPU multiply float32 matrices in TF32, or not, for the whole process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wants_tf32(cfg) else "highest")


def seed_position(*position: int | str) -> None:
    """Seed torch, numpy and Python from a position such as (seed, step, micro-batch, rank)."""
    text = "/".join(str(part) for part in position)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def to_device(item: Any, device: torch.device) -> Any:
    """Tensors of a nested batch on the device (asynchronously where they are pinned); everything else as it is."""
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        return {key: to_device(value, device) for key, value in item.items()}
    if isinstance(item, list | tuple) and any(isinstance(part, Tensor | Mapping | list | tuple) for part in item):
        return type(item)(to_device(part, device) for part in item)
    return item
