"""`--dry-run`: build everything, run one step, report its cost; on the meta device if files are missing."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from lavis_lite import distributed, engine
from lavis_lite.config.compose import Composition
from lavis_lite.config.mixing import published_mixing
from lavis_lite.config.schema import Config
from lavis_lite.costs.meta import meta_model
from lavis_lite.costs.page import costs
from lavis_lite.device import pick_device, to_device
from lavis_lite.models.base import BaseModel
from lavis_lite.models.protocols import ExampleSamples
from lavis_lite.process.launch import Launch, launch_from_environment
from lavis_lite.registry import need
from lavis_lite.runners.runner import Runner


def dry_run(composition: Composition, needs: list[str], hint: str, gpus: int | None = None) -> None:
    """One step with the real data or, if `needs` lists missing files, forward and backward on the meta device.

    Both print what a training costs on each of `gpus` GPUs; None: as many as the launcher starts.
    """
    config = composition.config
    for note in config.notes:
        print(f"note: {note}")
    if not needs:
        return _one_real_step(config, gpus)
    print_mixing(published_mixing(config))  # first: the step may lack the language model's configuration
    _one_meta_step(config, gpus)
    print(f"\n{len(needs)} missing; the run would stop before it starts:")
    print("\n".join(f"  {number}. {need}" for number, need in enumerate(needs, 1)))
    print(f"fetch what can be fetched with: {hint}")
    return None


def _one_real_step(config: Config, gpus: int | None = None) -> None:
    """The run's first step, or the first batch of every split that it evaluates; no file is written."""
    run = dataclasses.replace(config.run, tensorboard=False, wandb=False)
    short = dataclasses.replace(config, run=run)
    launch = Launch(local_rank=launch_from_environment().local_rank)  # a single process: it joins no group
    device = pick_device(run.device, launch.local_rank)
    with tempfile.TemporaryDirectory() as folder:
        engine.seed_everything(run.seed)
        start = time.perf_counter()
        runner = engine.assemble(short, device, Path(folder), launch)
        did = _first_batches(runner) if run.evaluate else _first_step(runner)
    print(f"weights: {runner.weights(0)}")
    print_parts(runner.model)
    print_mixing([] if run.evaluate else runner.train_state.mixing)
    if not run.evaluate:
        print("\n".join(costs(config, gpus)))
    seconds = time.perf_counter() - start
    print(f"dry run: built everything and {did} in {seconds:.1f} s; nothing was kept.")


def _first_step(runner: Runner) -> str:
    losses = runner.one_step()
    if unreached := runner.train_state.train_step.unreached:
        print(f"note: {unreached}. Unless other batches use them, they do not train.")
    return f"ran one step ({', '.join(f'{name} {value:.4f}' for name, value in losses.items())})"


@torch.no_grad()
def _first_batches(runner: Runner) -> str:
    """Predict one batch of every evaluated split of every data set that the task takes."""
    predicted, evaluator, task = [], runner.evaluator, runner.task
    runner.model.eval()
    for split in dict.fromkeys([*runner.run.valid_splits, *runner.run.test_splits]):
        for name, splits in runner.datasets.items():
            if split not in splits or not task.takes(splits[split]):
                continue
            part = task.part_for(splits[split])
            part.before_evaluation(splits[split], split)
            with closing(iter(evaluator.loader(part.evaluated(splits[split]), runner.run, 0, 1))) as batches:
                batch = next(batches)
            with distributed.local(), evaluator.precision.autocast():
                rows = part.predict(runner.model, to_device(batch, runner.device))
            predicted.append(f"{len(rows)} of {name} {split!r}")
    return f"predicted one batch ({', '.join(predicted)})"


def print_parts(model: BaseModel) -> None:
    """Trainable and frozen parameters of every part."""
    for part, (trains, stays) in model.count_parameters().items():
        print(f"  {part:16} {trains:>14,} trainable {stays:>14,} frozen")


def print_mixing(lines: list[str]) -> None:
    """Probabilities of the data sets, if there are several."""
    if len(lines) > 1:
        print("training data:")
        print("\n".join(f"  {line}" for line in lines))


def _one_meta_step(config: Config, gpus: int | None) -> None:
    model = meta_model(config.model)
    need(model, ExampleSamples, "a dry run without the files")
    print_parts(model)
    print("\n".join(costs(config, gpus, model)))
    print("dry run on the meta device: forward and backward pass fit together.")
