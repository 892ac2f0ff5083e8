"""Restarts that nobody watches: torchrun's, SLURM's, and `--resume auto` over what a killed run left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.faulty import write_config
from tests.reliability.harness import (
    REPOSITORY,
    Case,
    Outcome,
    Zygote,
    environment,
    finish,
    left_behind,
    outcome,
    texts,
)

STEPS = 12


def torchrun(folder: Path, *options: str, restarts: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Two ranks under torchrun, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               f"--max-restarts={restarts}", "--monitor-interval=0.1", "train.py", "--cfg-path",
               str(write_config(folder, STEPS)), "--resume", "auto", "--options", *options]
    given = {"FAULT_RANK": "1", **env}
    return subprocess.run(command, cwd=REPOSITORY, env=environment(folder, **given), text=True, capture_output=True,
                          timeout=240, start_new_session=True, check=False)


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What two ranks make of the run."""
    folder = tmp_path_factory.mktemp("whole")
    jobs = Case(ranks=2, steps=STEPS).start(zygote, folder)
    assert finish(jobs) == [0, 0], texts(jobs)
    return outcome(folder, STEPS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --long, fifty restarts: ranks, causes and loader workers in turn."""
    if "restart" in metafunc.fixturenames:
        causes = ["model:kill", "data set:exception", "save:exception", "model:memory", "optimizer:exception"]
        rows = [(causes[number % 5], str(number % 2 if number % 5 != 2 else 0), number // 2 % 2)  # rank 0 alone saves
                for number in range(50)]
        metafunc.parametrize("restart", rows if metafunc.config.getoption("--long") else rows[1:2],
                             ids=lambda row: f"{row[0].replace(' ', '_')}-rank{row[1]}-{row[2]}w")


@pytest.mark.slow
def test_torchrun_max_restarts_goes_on_bit_for_bit(restart: tuple[str, str, int], tmp_path: Path,
                                                   uninterrupted: Outcome) -> None:
    fault, rank, workers = restart
    done = torchrun(tmp_path, f"run.num_workers={workers}", restarts=1, FAULT=fault, FAULT_RANK=rank)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fault").exists()
    assert done.stdout.count("resuming from") == 1
    assert done.stderr.count("error: ") == 1, done.stderr
    assert outcome(tmp_path, STEPS) == uninterrupted
    assert left_behind(tmp_path, []) == []
