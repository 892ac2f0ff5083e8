"""Stage-1 training from kept features of the frozen vision encoder against training from images, interleaved.

    python -m benchmarks.feature_cache [--steps 12] [--warmup 3] [--batch 32] [--dtype bf16]

Whole optimizer steps of the mini recipe, loading included (no loader processes: what both save and spend is in one
process). Prints the median of the paired ratios, the medians, and the difference of the losses. Cost: two minutes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lavis_lite import engine
from lavis_lite.cli.data_cache_features import write_all
from lavis_lite.config.compose import compose
from lavis_lite.process.launch import launch_from_environment

RECIPE = "projects/blip2/stage1.yaml"


def options(folder: Path, batch: int, features: Path | None) -> list[str]:
    """Overrides of the recipe."""
    world = "datasets.mini_world_caption.prepare_args={train: 400, val: 8, test: 8, ood: 4, seed: 5, progress: false}"
    own = ["run.num_workers=0", f"run.batch_size_train={batch}", "run.tensorboard=false", "run.test_splits=[]",
           "run.device=cpu", f"run.output_dir={folder}/out", world]
    return own + ([f"datasets.mini_world_caption.features={features}"] if features else [])


def steps(folder: Path, batch: int, features: Path | None, count: int) -> Iterator[dict[str, Any]]:
    """Seconds and loss of optimizer steps, one by one as they are asked for."""
    config = compose(RECIPE, options(folder, batch, features)).config
    engine.seed_everything(config.run.seed)
    runner = engine.assemble(config, torch.device("cpu"), folder / "run", launch_from_environment())
    stepper, batches = runner.train_state.train_step, runner.train_state.batches(0, count)
    for step in range(count):
        start = time.perf_counter()
        result = stepper.run(step, [next(batches)])
        yield {"seconds": time.perf_counter() - start, "loss": float(result.losses["loss"])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    chosen = parser.parse_args()
    total = chosen.steps + chosen.warmup
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("LAVIS_LITE_CACHE", f"{folder}/cache")
        start = time.perf_counter()
        write_all(compose(RECIPE, options(folder, chosen.batch, None)).config, folder / "features", chosen.dtype, 1000)
        writing = time.perf_counter() - start
        live = steps(folder, chosen.batch, None, total)
        kept = steps(folder, chosen.batch, folder / "features" / "mini_world_caption", total)
        pairs = list(zip(live, kept, strict=True))[chosen.warmup:]
    seconds = [[side["seconds"] for side in sides] for sides in zip(*pairs, strict=True)]
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
    apart = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs)
    live_median, kept_median = (statistics.median(one) for one in seconds)
    print(f"{datetime.date.today()}  {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}  stage-1 step, mini, batch "
          f"{chosen.batch}, {chosen.dtype} features: {ratio:.2f} times the speed (medians {live_median:.3f} and "
          f"{kept_median:.3f} s, {len(pairs)} steps each, interleaved); losses apart by at most {apart:.1e} of their "
          f"value; writing the features of 400 images {writing:.1f} s")


if __name__ == "__main__":
    main()
