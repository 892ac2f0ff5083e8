"""`--dry-run`: build everything, run one step, say what it would cost; on the meta device where files are missing."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lavis_lite import distributed, engine
from lavis_lite.config.compose import Composition
from lavis_lite.config.schema import Config, ModelConfig
from lavis_lite.distributed import launch_from_environment
from lavis_lite.registry import registry
from lavis_lite.runners.mixing import published_mixing
from lavis_lite.runners.precision import pick_device

GIB = 2**30


def dry_run(composition: Composition, needs: list[str], hint: str) -> None:
    """One step with the real data, or, where `needs` lists missing files, forward and backward on the meta device."""
    config = composition.config
    for note in config.notes:
        print(f"note: {note}")
    if not needs:
        return _one_real_step(config)
    _one_meta_step(config)
    print_mixing(published_mixing(config))
    print(f"\nmissing, {len(needs)} in all; the run would stop before it starts:")
    print("\n".join(f"  {number}. {need}" for number, need in enumerate(needs, 1)))
    print(f"fetch what can be fetched with: {hint}")
    return None


def _one_real_step(config: Config) -> None:
    """The run's first step; no file is written."""
    run = dataclasses.replace(config.run, tensorboard=False, wandb=False, evaluate=False)
    short = dataclasses.replace(config, run=run)
    launch = launch_from_environment()
    device = pick_device(run.device, launch.local_rank)
    distributed.init(device, run.dist_timeout_minutes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine.seed_everything(run.seed)
            start = time.perf_counter()
            runner = engine.assemble(short, device, Path(folder), launch)
            losses = runner.one_step()
    finally:
        distributed.shutdown()
    print_parts(runner.model)
    print_mixing(runner.parts.mixing)
    parts = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    seconds = time.perf_counter() - start
    print(f"dry run: built everything and ran one step ({parts}) in {seconds:.1f} s; nothing was kept.")


def print_parts(model: Any) -> None:
    """Trainable and frozen parameters of every part."""
    for part, (trains, stays) in model.count_parameters().items():
        print(f"  {part:16} {trains:>14,} trainable {stays:>14,} frozen")


def print_mixing(lines: list[str]) -> None:
    """Probabilities of the data sets, where there are several."""
    if len(lines) > 1:
        print("training data:")
        print("\n".join(f"  {line}" for line in lines))


def _one_meta_step(config: Config) -> None:
    model = meta_model(config.model)
    batch = config.run.batch_size_train
    samples = model.example_samples(batch, torch.device("meta"))
    output = model(samples)
    output.loss.backward()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    print_parts(model)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in samples.items() if torch.is_tensor(value))
    print(f"dry run on the meta device: forward and backward of {batch} samples per rank fit together ({shapes}).")
    need = trainable * 16 / GIB + frozen * 2 / GIB
    print(f"{trainable:,} parameters train, {frozen:,} are frozen; weights, gradients and AdamW state take about "
          f"{need:.1f} GiB per rank, activations besides.")


def meta_model(section: ModelConfig) -> Any:
    """The model of a section on the meta device: real shapes, no memory, no files."""
    with torch.device("meta"):
        return registry.get_model_class(section.arch).from_config(section)
