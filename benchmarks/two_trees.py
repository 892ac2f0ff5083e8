"""Two checkouts of this project, interleaved: processor time of a training step, and of an evaluation.

    python -m benchmarks.two_trees OLD NEW --rounds 5

Each round trains and evaluates with either tree in turn, over the same generated pictures. A step's time is the slope
between a short and a long training, so that start-up does not count. Printed: medians of user and system time, and the
median of the rounds' ratios (old / new; above 1: the new one is faster).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SHORT, LONG = 5, 45
"""steps of the two trainings"""
SMALL = ["run.num_workers=0", "run.tensorboard=false", "run.valid_splits=[]", "run.log_freq=5"]
TRAININGS = {"stage 1": ("projects/blip2/stage1.yaml", "mini_world_caption", 16),
             "stage 2, OPT": ("projects/blip2/stage2_opt.yaml", "mini_world_caption", 16),
             "stage 2, T5": ("projects/blip2/stage2_t5.yaml", "mini_world_caption", 16)}
WORLD = "prepare_args={train: 128, val: 16, test: 48, ood: 4, seed: 3}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measures: dict[str, Callable[[Path], float]] = {
            name: lambda tree, name=name: step_seconds(tree, name, Path(folder)) for name in TRAININGS}  # type: ignore[misc]
        measures["evaluation, VQA"] = lambda tree: evaluation_seconds(tree, Path(folder))
        for name, measure in measures.items():
            for tree in (chosen.old, chosen.new):
                measure(tree)  # fills the caches
            pairs = [(measure(chosen.old), measure(chosen.new)) for _ in range(chosen.rounds)]
            old, new = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = sorted(before / after for before, after in pairs)
            print(f"{name}: old {old:.4f} s, new {new:.4f} s, ratio {statistics.median(ratios):.3f} "
                  f"({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def step_seconds(tree: Path, name: str, folder: Path) -> float:
    """Processor seconds of one training step."""
    config, dataset, batch = TRAININGS[name]
    options = [f"datasets.{dataset}.{WORLD}", f"run.batch_size_train={batch}", "run.test_splits=[]", *SMALL]
    short, long = (run(tree, ["train.py", "--cfg-path", config], [*options, f"run.max_iters={steps}"], folder)
                   for steps in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def evaluation_seconds(tree: Path, folder: Path) -> float:
    """Processor seconds of a small evaluation from start to report."""
    return run(tree, ["evaluate.py", "--cfg-path", "projects/blip2/eval/mini_vqa_opt.yaml"],
               [f"datasets.mini_world_vqa.{WORLD}", "run.num_workers=0"], folder)


def run(tree: Path, command: list[str], options: list[str], folder: Path) -> float:
    """Processor seconds of a command of a tree and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "LAVIS_LITE_OFFLINE": "1",
                                "LAVIS_LITE_CACHE": str(folder / f"cache-{tree.resolve().name}")}
    subprocess.run([sys.executable, *command, "--options", *options, f"run.output_dir={folder / 'out'}"], cwd=tree,
                   env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
