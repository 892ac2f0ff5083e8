"""The costs of a run as lines for people: what `--dry-run` prints."""

from __future__ import annotations

import os
from typing import Any

import torch

from lavis_lite.config.schema import Config
from lavis_lite.costs.account import GPUS, UTILISATION, Memory, Traffic, checkpoint_bytes, memory_of, seconds
from lavis_lite.costs.meta import meta_model
from lavis_lite.costs.meter import StepCount, count_step
from lavis_lite.device import DTYPES
from lavis_lite.models.base import BaseModel
from lavis_lite.models.protocols import ExampleSamples

META = torch.device("meta")


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
    memory, traffic = memory_of(model, run, step, ranks), Traffic.of(model, run, ranks)
    shared = f", run.fsdp={run.fsdp}" if run.fsdp != "none" else ""
    kind = "" if dtype == torch.float32 else f" under {str(dtype).removeprefix('torch.')}"
    return [f"costs per GPU of {ranks}{shared}: {run.batch_size_train} samples{kind}, texts as long as allowed",
            *memory_lines(memory, run.optimizer), *time_lines(step, run.accum_grad_iters, dtype, memory.peak),
            *([f"  sent           {size(traffic.gradients + traffic.blocks)}   a step, gradients and shared blocks"]
              if ranks > 1 else []), *disk_lines(config, model)]


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


def disk_lines(config: Config, model: Any) -> list[str]:
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
