"""The device and precision that a model computes in, and a frozen language model sharded over the ranks (FSDP2).

Only what is frozen is sharded: it takes the memory, and has neither gradients nor optimizer state. What trains (the
Q-Former, the projection, adapters) stays whole on every rank under DDP, so checkpoints are those of any other run.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.run_rules import sharding_error
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

# --- device and precision --------------------------------------------------------------------------------------------
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


# --- sharding --------------------------------------------------------------------------------------------------------
def shard_frozen(model: BaseModel, run: RunConfig, device: torch.device) -> None:
    """Do what `run.fsdp` asks, before the model is moved to `device`: block by block, so that it need never fit whole.

    With one process nothing is done.

    Raises:
        ConfigError: the model has no blocks to share, or the run would also answer.
    """
    if run.fsdp == "none":
        return
    problem = sharding_error(run)
    if problem is not None:
        raise ConfigError(f"run.fsdp: {problem}")
    blocks = model.blocks_to_shard()
    if not blocks:
        raise ConfigError(f"run.fsdp: {type(model).__name__} has no frozen transformer blocks: neither in an attribute "
                          "language_model, nor by a method blocks_to_shard of its own. Set run.fsdp=none.")
    if distributed.world_size() == 1:
        return
    _shard(blocks, device)


def _shard(blocks: Sequence[nn.Module], device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # slow to import, and few runs need it

    # blocks of transformers end in a view; what follows them does not write into it, as the tests show for every family
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in blocks:
        trained = {parameter for parameter in block.parameters() if parameter.requires_grad}
        # without a sharded parent a block would by default keep what it borrowed until the backward pass
        kept_whole: dict[str, Any] = {"ignored_params": trained} if trained else {}
        if not kept_whole.keys() <= inspect.signature(fully_shard).parameters.keys():
            raise ConfigError(f"run.fsdp: torch {torch.__version__} cannot keep adapters whole in blocks that are "
                              "shared out; update torch, or set model.lora=null.")
        fully_shard(block, mesh=mesh, reshard_after_forward=True, **kept_whole)


def sharded_names(model: nn.Module) -> list[str]:
    """Parameters of which this rank has only a part."""
    from torch.distributed.tensor import DTensor

    return [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]


def ignore_in_ddp(model: nn.Module) -> None:
    """Tell DDP, which copies rank 0's weights to all ranks at its start, to pass over parts of weights."""
    names = sharded_names(model)
    if names:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
