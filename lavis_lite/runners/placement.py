"""The model of a training: on its device, its blocks shared by the ranks (`run.fsdp`), and compiled (`run.compile`).

FSDP2 shares transformer blocks, frozen or trained. All stand under one root, the model, so that the weights of the next
block travel while a block computes. What is in no block (word embeddings, the Q-Former, a projection, adapters) stays
whole on every rank under DDP.

Compiled modules keep their names, so checkpoints are those of an eager run. Evaluation stays eager: beams and caches
change their shapes with every token.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.device import Precision
from lavis_lite.errors import ConfigError
from lavis_lite.process.compiler import why_not

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

BACKEND = "inductor"


def prepare_for_training(model: BaseModel, run: RunConfig, device: torch.device) -> BaseModel:
    """`move_to_device`, then `compile_model`. An evaluation alone needs neither, but whole eager weights.

    Raises:
        ConfigError: the model cannot be shared or compiled as the run asks.
    """
    model = move_to_device(model, run, device)
    compile_model(model, run, device)
    return model


def move_to_device(model: BaseModel, run: RunConfig, device: torch.device) -> BaseModel:
    """The model on its device, its blocks shared as `run.fsdp` asks: block by block, so that it need never fit whole.

    A single process shares nothing.

    Raises:
        ConfigError: the model has no blocks to share, or they cannot be shared in this run.
    """
    blocks = None if run.fsdp == "none" else blocks_of_run(model, run, device)
    if blocks is None or distributed.world_size() == 1:
        return model.to(device)
    check(blocks, Precision.from_run(run, device))
    _shard(model, blocks, device)
    placed = model.to(device)
    # else the first block that runs alone, in a validation before the first step, would become a separate root
    placed._get_fsdp_state()._lazy_init()  # type: ignore[operator]
    return placed


# --- blocks that ranks share ------------------------------------------------------------------------------------------
class Blocks(NamedTuple):
    """The blocks that ranks share, in the order in which they run."""

    vision: list[nn.Module]
    language: list[nn.Module]

    @property
    def all(self) -> list[nn.Module]:
        """Both, the encoder's first."""
        return [*self.vision, *self.language]

    @property
    def with_backward(self) -> list[nn.Module]:
        """Those that gradients pass through: all of a language model, and an encoder's from the first that trains."""
        frozen = lambda block: not any(value.requires_grad for value in block.parameters())  # noqa: E731
        return [*itertools.dropwhile(frozen, self.vision), *self.language]


def blocks_of_run(model: BaseModel, run: RunConfig, device: torch.device) -> Blocks:
    """The blocks that `run.fsdp` names.

    Raises:
        ConfigError: the model has no such blocks.
    """
    vision = model.vision_blocks_to_shard(device) if run.fsdp == "blocks" else []
    blocks = Blocks(vision, model.blocks_to_shard())
    if not blocks.all:
        raise ConfigError(f"run.fsdp={run.fsdp}: {type(model).__name__} has no transformer blocks to share, for it has "
                          "neither an attribute language_model nor a method blocks_to_shard. Set run.fsdp=none, or "
                          "run.fsdp=blocks, which also shares those of a vision encoder.")
    return blocks


def check(blocks: Blocks, precision: Precision) -> None:
    """Refuse fp16 for blocks that train.

    Raises:
        ConfigError: says why, and what to set.
    """
    if precision.dtype is torch.float16 and any(_trains_whole(block) for block in blocks.all):
        raise ConfigError("run.amp_dtype: fp16 scales the loss by what a rank's gradients allow, and ranks have "
                          "different parts of blocks that train. Set run.amp_dtype=bf16, or run.fsdp=none.")


def _trains_whole(block: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in block.parameters())


def stays_whole(block: nn.Module) -> set[nn.Parameter]:
    """Adapters of a frozen block, and single numbers: little to share, and DDP has their gradients."""
    trains = _trains_whole(block)
    return {value for value in block.parameters() if value.ndim == 0 or value.requires_grad and not trains}


def _shard(model: nn.Module, blocks: Blocks, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # slow to import, and few runs need it

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ConfigError(f"run.fsdp: torch {torch.__version__} cannot keep what is outside of blocks whole; update "
                          "torch to 2.7 or later, or set run.fsdp=none.")
    # blocks of transformers end in a view; what follows them does not write into it, as the tests show for every family
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    how: dict[str, Any] = {"mesh": init_device_mesh(device.type, (distributed.world_size(),))}
    for block in blocks.all:
        fully_shard(block, reshard_after_forward=True, ignored_params=stays_whole(block), **how)
    rest = {value for value in model.parameters() if not distributed.is_sharded(value)}
    fully_shard(model, ignored_params=rest, **how)
    _prefetch(blocks.all, blocks.with_backward)


def _prefetch(blocks: Sequence[Any], backward: Sequence[Any]) -> None:
    """While a block computes, the weights of the next one travel: forward in their order, backward against it."""
    for block, after in zip(blocks, blocks[1:], strict=False):
        block.set_modules_to_forward_prefetch([after])
    # the first fetches itself, which does nothing: with an empty list FSDP would guess, and fetch frozen blocks too
    for before, block in zip([*backward[:1], *backward], backward, strict=False):
        block.set_modules_to_backward_prefetch([before])


def shared_blocks(model: nn.Module) -> list[Any]:
    """The blocks that are shared now, in order."""
    if not distributed.has_shards(model):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule) and module is not model]


@contextlib.contextmanager
def whole_blocks(model: nn.Module) -> Iterator[None]:
    """Every rank has all weights inside, so that each can answer as often and as long as it likes. Collective."""
    blocks = shared_blocks(model)
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.reshard()
            block.set_reshard_after_forward(True, recurse=False)


def sharded_names(model: nn.Module) -> list[str]:
    """Parameters of which this rank has only a part."""
    return [name for name, parameter in model.named_parameters() if distributed.is_sharded(parameter)]


def ignore_in_ddp(model: nn.Module) -> None:
    """Tell DDP, which copies rank 0's weights to all ranks at its start, to pass over parts of weights."""
    names = sharded_names(model)
    if names:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


# --- run.compile ------------------------------------------------------------------------------------------------------
def compile_model(model: BaseModel, run: RunConfig, device: torch.device) -> None:
    """Compile what `run.compile` names, at its first use.

    Raises:
        ConfigError: the model has no such parts, or this machine cannot compile.
    """
    if run.compile == "none":
        return
    reason = why_not(device.type) if BACKEND == "inductor" else None
    if reason:
        raise ConfigError(f"run.compile={run.compile}: {reason}")
    compiled = _compile_blocks(model, device) if run.compile == "blocks" else _compile_losses(model, device)
    if not compiled:
        other = "full" if run.compile == "blocks" else "blocks"
        raise ConfigError(f"run.compile={run.compile}: {type(model).__name__} has nothing to compile in this way. Set "
                          f"run.compile={other} or none.")
    for part in model.modules():
        if getattr(part, "few_widths", None) is not None:
            part.few_widths = True  # type: ignore[assignment]


def _compile_blocks(model: BaseModel, device: torch.device) -> int:
    """Compile each block for all widths at once; the number of blocks."""
    blocks = model.blocks_to_compile(device)
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=True)
    return len(blocks)


def _compile_losses(model: BaseModel, device: torch.device) -> int:
    """Compile the methods that a model and its language model name, for each width; the number of methods of its own.

    They are compiled as functions of the model, so that a copy of it runs with its own weights.
    """
    model.vision_blocks_to_shard(device)  # a frozen encoder takes its final dtype, which no compiled code can do
    for part in model.modules() if model.traced else ():
        for name in getattr(part, "traced", ()):
            function = torch.compile(getattr(type(part), name), backend=BACKEND, dynamic=False)
            setattr(part, name, MethodType(function, part))
    return len(model.traced)


def eagerly(run: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Within it, nothing is compiled and compiled parts run as they are written."""
    if run.compile == "none" or run.evaluate:
        return contextlib.nullcontext()  # the compiler is not even imported
    stance: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
