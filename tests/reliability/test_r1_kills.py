"""R1: killed at random points and resumed, a run ends bit for bit as if nothing had happened.

`--long` kills 100 times: 1 and 2 ranks, without and with loader workers; `--kills N` another number of times.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.reliability.chains import STEPS, Uninterrupted, chain, log_lines
from tests.reliability.harness import Job, Zygote, finish, left_behind, outcome, texts

FEW, MANY = 2, 100
PER_CHAIN = 4
SETUPS = [(1, 2), (2, 0), (1, 0), (2, 2)]
"""(ranks, loader workers)"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The kills are shared out among the setups."""
    if "kills" in metafunc.fixturenames:
        config = metafunc.config
        total = config.getoption("--kills") or (MANY if config.getoption("--long") else FEW)
        rows = [(*setup, total // len(SETUPS) + (place < total % len(SETUPS))) for place, setup in enumerate(SETUPS)]
        metafunc.parametrize(("ranks", "workers", "kills"), [row for row in rows if row[-1]],
                             ids=lambda value: str(value))


def kill_somewhere(jobs: list[Job], folder: Path, rng: random.Random) -> bool:
    """Kill all ranks or one of them, during the start or after a step; whether the run had not ended before."""
    target = rng.randrange(STEPS)
    while log_lines(folder) < target and all(job.poll() is None for job in jobs):
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 0.05 if target else 0.5))
    victims = jobs if rng.random() < 0.5 else [rng.choice(jobs)]
    for job in victims:
        if job.poll() is None:
            job.signal(signal.SIGKILL)
    codes = finish(jobs)
    assert all(code in (-signal.SIGKILL, 0, 2) for code in codes), texts(jobs)  # 2: its other rank is gone
    return -signal.SIGKILL in codes


@pytest.mark.timeout(3600)
def test_r1_a_killed_run_ends_bit_for_bit_alike(ranks: int, workers: int, kills: int, zygote: Zygote, tmp_path: Path,
                                                uninterrupted: Uninterrupted) -> None:
    rng = random.Random(ranks * 10 + workers)
    case = chain(ranks, workers)
    done = chains = 0
    while done < kills:
        folder = tmp_path / str(chains)
        folder.mkdir()
        for _ in range(min(PER_CHAIN, kills - done)):
            done += kill_somewhere(case.start(zygote, folder), folder, rng)
        jobs = case.start(zygote, folder)
        assert finish(jobs) == [0] * ranks, texts(jobs)
        assert outcome(folder, STEPS) == uninterrupted.outcome(ranks)
        assert left_behind(folder, jobs) == []
        chains += 1
    print(f"R1: {done} kills in {chains} runs, {ranks} ranks, {workers} workers: all bit for bit alike")
