"""What saving costs a run: the mini stage-1 recipe, which saves every 200 steps.

    python -m benchmarks.save_cost [--steps 40] [--every 5] [--batch 32]

Trains a few steps and saves more often than the recipe does, to time more saves. Prints the median time of a step and
of a save (hashing and syncing included), and the share of a run that saves every 200 or 50 steps. Cost: a minute.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.feature_cache import RECIPE, options
from lavis_lite import engine
from lavis_lite.config.compose import compose
from lavis_lite.process.launch import launch_from_environment

WARM_UP = 3
"""steps that are not counted"""


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function; each call adds its seconds to the list."""
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def measure(folder: Path, batch: int, steps: int, every: int) -> tuple[list[float], list[float], int]:
    """Seconds of steps and of saves, and bytes of a checkpoint."""
    given = [*options(folder, batch, None), f"run.max_iters={steps}", f"run.save_every={every}", "run.log_freq=1000"]
    config = compose(RECIPE, given).config
    engine.seed_everything(config.run.seed)
    runner = engine.assemble(config, torch.device("cpu"), folder / "run", launch_from_environment())
    step_seconds: list[float] = []
    save_seconds: list[float] = []
    runner.train_state.train_step.run = timed(runner.train_state.train_step.run, step_seconds)  # type: ignore[method-assign]
    runner.store.save = timed(runner.store.save, save_seconds)  # type: ignore[method-assign]
    runner.train()
    size = sum(file.stat().st_size for file in runner.store.path(steps).iterdir())
    return step_seconds[WARM_UP:], save_seconds, size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("LAVIS_LITE_CACHE", f"{name}/cache")
        steps, saves, size = measure(Path(name), chosen.batch, chosen.steps, chosen.every)
    step, save = statistics.median(steps), statistics.median(saves)
    shares = {interval: save / (save + interval * step) for interval in (200, 50)}
    print(f"{datetime.date.today()}  {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}  stage-1, mini, batch "
          f"{chosen.batch}: step {step:.3f} s ({min(steps):.3f} to {max(steps):.3f}, {len(steps)}), save {save:.3f} s "
          f"({min(saves):.3f} to {max(saves):.3f}, {len(saves)}), {size / 2**20:.1f} MiB; saving every 200 steps takes "
          f"{shares[200]:.2%} of a run, every 50 steps {shares[50]:.2%}")


if __name__ == "__main__":
    main()
