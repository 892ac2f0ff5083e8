"""A frozen language model sharded over the ranks (FSDP2).

Only what is frozen is sharded: it takes the memory, and has neither gradients nor optimizer state. What trains (the
Q-Former, the projection, adapters) stays whole on every rank under DDP, so checkpoints are those of any other run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.config.typed import sharding_error
from lavis_lite.errors import ConfigError

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel


def shard_frozen(model: BaseModel, run: RunConfig, device: torch.device) -> None:
    """Do what `run.fsdp` asks, before the model is moved to `device`: block by block, so that it need never fit whole.

    Called if `run.fsdp` is not none. With one process nothing is done.

    Raises:
        ConfigError: the model has no blocks to share, or the run would also answer.
    """
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
