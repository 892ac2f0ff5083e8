"""A toy run as a process of its own: `python -m tests.helpers.toy_run RUN_DIR WORKERS`. It resumes what it finds."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from lavis_lite.runners import checkpointing
from lavis_lite.runners.runner import Runner
from lavis_lite.runners.signals import Interrupted
from tests.helpers.threads import THREADS
from tests.helpers.toy import Toy, ToyTask

RUN: dict[str, Any] = {"max_iters": 30, "accum_grad_iters": 2, "save_every": 1, "iters_per_inner_epoch": 7,
                       "valid_splits": ["val"]}


class SlowTask(ToyTask):
    """Slow enough for a signal to come in the middle."""

    def train_step(self, model: Any, samples: dict[str, Any]) -> Any:
        time.sleep(0.02)
        return super().train_step(model, samples)


def go_on(run_dir: Path, workers: int = 0, task: type[ToyTask] = ToyTask) -> Runner:
    """Resume the newest good checkpoint, if there is one, and train to the end."""
    runner = Toy(run_dir, {**RUN, "num_workers": workers}, task_class=task).build()
    found = checkpointing.newest_good(run_dir, log=lambda text: None)
    if found is not None:
        runner.resume(found)
    runner.train()
    return runner


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    try:
        go_on(Path(sys.argv[1]), int(sys.argv[2]), SlowTask)
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.exit_code)
