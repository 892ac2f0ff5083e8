"""From a model on the meta device and its counted step to bytes per GPU, traffic, and seconds on named GPUs."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lavis_lite.config.schema import RunConfig
from lavis_lite.costs.meter import StepCount
from lavis_lite.models.base import BaseModel
from lavis_lite.runners.optim import state_per_byte
from lavis_lite.runners.placement import Blocks, blocks_of_run, stays_whole

UTILISATION = 0.4
"""share of a GPU's peak that predictions assume"""
GPUS: dict[str, tuple[float, float, float]] = {
    "V100 32 GB": (125e12, 15.7e12, 32e9), "A100 80 GB": (312e12, 19.5e12, 80e9), "H100 80 GB": (989e12, 67e12, 80e9),
    "H200 141 GB": (989e12, 67e12, 141e9), "RTX 4090 24 GB": (165e12, 82.6e12, 24e9)}
"""name -> peak FLOP/s in 16 bits (dense), in 32 bits, bytes of memory; from the makers' data sheets"""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: with buffers; of blocks that ranks share, its part.
        gradients: of all that trains.
        moments: of the optimizer.
        averages: of the hook ema.
        gathered: whole weights (and gradients) of blocks that are shared: one that computes, one that travels.
        activations: most at once.
        peak: most of everything at once.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    gathered: int
    activations: int
    peak: int


def memory_of(model: BaseModel, run: RunConfig, step: StepCount, gpus: int = 1) -> Memory:
    """Bytes on one of `gpus` GPUs while the run trains.

    Args:
        model: on the meta device, in the types in which it trains.
        run: `fsdp`, the optimizer and the hooks are used.
        step: of one micro-batch.
        gpus: number of ranks.
    """
    blocks = shared_blocks_of(model, run, gpus)
    parts = _parts(model, blocks, gpus)
    trained = [(value, size) for value, size in parts.items() if value.requires_grad]
    weights = sum(parts.values()) + sum({value.untyped_storage()._cdata: value.nbytes
                                         for value in model.buffers()}.values())
    gradients = sum(size for _, size in trained)
    per_byte = state_per_byte(run)
    moments = round(sum(size * per_byte[value.ndim > 1] for value, size in trained))
    averages = sum(size * 4 // value.element_size() for value, size in trained) if run.hooks.get("ema") else 0
    gathered = _gathered(blocks)
    # DDP holds gradients all the time; one process makes them while activations go
    live = step.with_gradients if gpus == 1 else step.activations + gradients
    return Memory(weights, gradients, moments, averages, gathered, step.activations,
                  weights + moments + averages + gathered + live)


def shared_blocks_of(model: BaseModel, run: RunConfig, gpus: int) -> list[nn.Module]:
    """The blocks that the ranks would share."""
    if run.fsdp == "none" or gpus == 1:
        return []
    found: Blocks = blocks_of_run(model, run, torch.device("meta"))
    return found.all


def _parts(model: nn.Module, blocks: Iterable[nn.Module], gpus: int) -> dict[nn.Parameter, int]:
    """Parameter -> bytes of it on one GPU; ranks share by rows, and the last may have fewer."""
    shared = {value for block in blocks for value in set(block.parameters()) - stays_whole(block)}
    return {value: math.ceil(value.shape[0] / gpus) * (value.nbytes // max(value.shape[0], 1))
            if value in shared else value.nbytes for value in model.parameters()}


def _gathered(blocks: list[nn.Module]) -> int:
    """Two whole blocks at a time; in the backward pass of trained ones, the gradients of both too."""
    def size(block: nn.Module) -> int:
        shared = set(block.parameters()) - stays_whole(block)
        return sum(value.nbytes * (1 + value.requires_grad) for value in shared)

    return 2 * max(map(size, blocks), default=0)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in an optimizer step, as ring collectives do it."""

    gradients: int
    blocks: int
    objectives: int = 0

    @classmethod
    def of(cls, model: BaseModel, run: RunConfig, gpus: int, dtype: torch.dtype = torch.float32) -> Traffic:
        """Of a run on so many GPUs: DDP exchanges gradients once a step; all else travels in every micro-batch."""
        blocks = shared_blocks_of(model, run, gpus)
        shared = {value for block in blocks for value in set(block.parameters()) - stays_whole(block)}
        whole = gradient_bytes(model, run, shared)
        back = {value for block in blocks_with_backward(model, run, gpus) for value in block.parameters()}
        moved = sum(value.nbytes * (1 + (value in back) + value.requires_grad) for value in shared)
        ring = (gpus - 1) / gpus
        objectives = sum(model.exchanged(run.batch_size_train, gpus, dtype)[:3]) if gpus > 1 else 0
        return cls(round(2 * ring * whole), round(ring * moved * run.accum_grad_iters),
                   round(ring * objectives * run.accum_grad_iters))


def gradient_bytes(model: BaseModel, run: RunConfig, shared: Container[nn.Parameter] = ()) -> int:
    """Bytes of the gradients that DDP exchanges, those of `shared` blocks left out."""
    whole = sum(value.nbytes for value in model.parameters() if value.requires_grad and value not in shared)
    return whole // 2 if run.gradient_compression == "bf16" else whole


def blocks_with_backward(model: BaseModel, run: RunConfig, gpus: int) -> list[nn.Module]:
    """The shared blocks that gradients pass through."""
    shared = run.fsdp != "none" and gpus > 1
    return blocks_of_run(model, run, torch.device("meta")).with_backward if shared else []


def seconds(flops: float, dtype: torch.dtype) -> dict[str, float]:
    """Predicted seconds of so many operations, by GPU, if it keeps busy with `UTILISATION` of its peak."""
    column = 0 if dtype != torch.float32 else 1
    return {name: flops / (facts[column] * UTILISATION) for name, facts in GPUS.items()
            if not (name.startswith("V100") and dtype == torch.bfloat16)}
