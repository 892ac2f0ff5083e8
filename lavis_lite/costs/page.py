"""The costs of a run as lines for people: what `--dry-run` prints."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.costs.account import (
    GPUS,
    UTILISATION,
    Memory,
    Traffic,
    gradient_bytes,
    memory_of,
    seconds,
)
from lavis_lite.costs.meta import meta_model
from lavis_lite.costs.meter import StepCount, count_forward, count_step
from lavis_lite.costs.scaling import Phases, Scaling
from lavis_lite.device import DTYPES, wants_tf32
from lavis_lite.models.base import BaseModel
from lavis_lite.models.protocols import ExampleSamples
from lavis_lite.runners.checkpointing import checkpoint_bytes

META = torch.device("meta")
SCALED_GPU = "H200 141 GB"
"""the GPU of the predicted weak scaling"""


def costs(config: Config, gpus: int | None = None, model: BaseModel | None = None) -> list[str]:
    """Lines with memory, arithmetic, time, traffic and disk of a training; counted, nothing runs.

    Args:
        config: of the run.
        gpus: ranks; None: those of the launcher, or one.
        model: on the meta device; None: it is built.
    """
    ranks = gpus or int(os.environ.get("WORLD_SIZE", "1"))
    model = meta_model(config.model) if model is None else model
    if not isinstance(model, ExampleSamples):
        return [f"costs: {type(model).__name__} has no example_samples(batch, device), so its step cannot be counted."]
    run, dtype = config.run, dtype_of(config)
    model.train()
    samples = model.example_samples(run.batch_size_train, META)
    step = count_step(model, lambda: model(samples).loss, dtype)
    memory, traffic = memory_of(model, run, step, ranks), Traffic.of(model, run, ranks, dtype)
    shared = f", run.fsdp={run.fsdp}" if run.fsdp != "none" else ""
    kind = "" if dtype == torch.float32 else f" under {str(dtype).removeprefix('torch.')}"
    return [f"costs per GPU of {ranks}{shared}: {run.batch_size_train} samples{kind}, texts as long as allowed",
            *memory_lines(memory, run.optimizer), *time_lines(step, run.accum_grad_iters, dtype, memory.peak),
            *(traffic_lines(traffic, scaling_of(model, samples, run, step, dtype)) if ranks > 1 else []),
            *disk_lines(config, model)]


def dtype_of(config: Config) -> torch.dtype:
    """The type of autocast on a GPU."""
    name = config.run.amp_dtype
    return DTYPES[("bf16" if config.run.amp else "fp32") if name == "auto" else name]


def size(count: float) -> str:
    """Bytes in GiB, right-aligned."""
    return f"{count / 2**30:8.2f} GiB"


def memory_lines(memory: Memory, optimizer: str) -> list[str]:
    """The parts of a GPU's memory; those that are 0 are left out."""
    rows = [("weights", memory.weights, ""), ("gradients", memory.gradients, ""),
            ("moments", memory.moments, optimizer), ("averages", memory.averages, "run.hooks.ema"),
            ("gathered", memory.gathered, "two whole blocks at a time"),
            ("activations", memory.activations, "most at once"),
            ("peak", memory.peak, "most of all at once; CUDA itself and fragments come on top")]
    return [f"  {name:14} {size(count)}   {note}".rstrip() for name, count, note in rows if count]


def time_lines(step: StepCount, micro_batches: int, dtype: torch.dtype, peak: int) -> list[str]:
    """Arithmetic of an optimizer step, and a prediction for named GPUs."""
    flops = step.flops * micro_batches
    found = [f"{name} {took:.2g} s{'' if peak < GPUS[name][2] else ' (does not fit)'}"
             for name, took in seconds(flops, dtype).items()]
    return [f"  arithmetic     {flops / 1e12:8.2f} TFLOP   an optimizer step and GPU",
            f"  predicted step {', '.join(found)}",
            f"                 a prediction, not a measurement: {UTILISATION:.0%} of the peak, and nothing to wait for"]


def scaling_of(model: BaseModel, samples: Any, run: RunConfig, step: StepCount, dtype: torch.dtype) -> Scaling | None:
    """The prediction for SCALED_GPU, its phases from counted operations; None if ranks share blocks."""
    if run.fsdp != "none":
        return None
    low, full, _ = GPUS[SCALED_GPU]
    image, speed = samples.get("image"), UTILISATION * (low if dtype != torch.float32 else full)
    frozen = count_forward(lambda: model.encode_ahead(image), dtype) if isinstance(image, Tensor) else 0
    phases = Phases(frozen / speed, max(step.forward - frozen, 0) / speed, (step.flops - step.forward) / speed, 0.0)
    return Scaling(phases, gradient_bytes(model, run), partial(model.exchanged, run.batch_size_train, dtype=dtype),
                   UTILISATION * (low / 2 if wants_tf32(run) else full), run.accum_grad_iters, run.overlap_exchange)


def traffic_lines(traffic: Traffic, scaling: Scaling | None) -> list[str]:
    """Bytes that a GPU sends, and predicted weak scaling."""
    parts = ", ".join(f"{name} {size(count).strip()}" for name, count in vars(traffic).items() if count)
    lines = [f"  sent           {size(sum(vars(traffic).values()))}   a step: {parts}"]
    if scaling is not None:
        lines += [f"  weak scaling   {scaling.line()} {SCALED_GPU}",
                  "                 a prediction: NVLink in nodes of 8, 400 Gbit/s per GPU between them"]
    return lines


def disk_lines(config: Config, model: BaseModel) -> list[str]:
    """Checkpoints, and features of a frozen vision encoder if they are saved."""
    one = checkpoint_bytes(model, config.run)
    lines = [f"  checkpoint     {size(one)}   each; {config.run.keep_checkpoints} newest and the best are kept"]
    encoder = getattr(model, "vision_encoder", None)
    tokens, width = getattr(encoder, "num_tokens", 0), getattr(encoder, "width", 0)
    if tokens and getattr(model, "freeze_vit", False):
        sizes = [section.train_size for section in config.datasets.values()]
        known = sum(count or 0 for count in sizes)
        total = f", {known * tokens * width * 2 / 2**40:.2f} TiB for {known:,} samples" if known and all(sizes) else ""
        lines.append(f"  features       {tokens * width * 2 / 2**20:8.2f} MiB   an image in 16 bits, if they are "
                     f"cached{total}")
    return lines
