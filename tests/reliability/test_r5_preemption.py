"""R5: asked to stop at any point, all ranks finish the step, save, leave soon, and the run goes on bit for bit.

`--long` asks at 20 points. Other signals, and signals to torchrun: test_exits.py, test_torchrun.py.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from lavis_lite.runners import checkpointing
from tests.reliability.chains import STEPS, Uninterrupted, chain, log_lines
from tests.reliability.harness import LIMIT, Zygote, damaged, finish, left_behind, outcome, texts, within

FEW, MANY = 2, 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Signals and ranks in turn."""
    if "point" in metafunc.fixturenames:
        metafunc.parametrize("point", range(MANY if metafunc.config.getoption("--long") else FEW))


def test_r5_a_preempted_run_saves_and_goes_on(point: int, zygote: Zygote, tmp_path: Path,
                                              uninterrupted: Uninterrupted) -> None:
    rng = random.Random(f"preempted {point}")
    ranks, workers = (2, 1)[point % 2], rng.choice([0, 1])
    number = (signal.SIGTERM, signal.SIGUSR1)[point % 4 // 2 ^ point % 2]
    jobs = chain(ranks, workers).start(zygote, tmp_path)
    target = rng.randrange(1, STEPS - 4)
    while log_lines(tmp_path) < target:
        assert all(job.poll() is None for job in jobs), texts(jobs)
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.02))
    for job in jobs:  # torchrun and srun tell every rank
        job.signal_group(number)
    asked = time.time()
    assert finish(jobs) == [143] * ranks, texts(jobs)
    assert texts(jobs).count("finishing this step") == ranks and "Traceback" not in texts(jobs)
    assert max(job.ended for job in jobs) - asked < within(LIMIT)
    assert damaged(tmp_path) == [] and left_behind(tmp_path, jobs) == []
    newest = checkpointing.newest_good(tmp_path / "out")
    assert newest is not None and int(newest.name.removeprefix("step_")) >= target  # nothing is lost
    jobs = chain(ranks, workers).start(zygote, tmp_path)
    assert finish(jobs) == [0] * ranks, texts(jobs)
    assert outcome(tmp_path, STEPS) == uninterrupted.outcome(ranks)
