"""A signal that asks a command to stop, at any moment: at its start, at work, and a second time."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lavis_lite.process.exits import code_of
from tests.reliability.harness import (
    LIMIT,
    SLOW,
    STEP,
    Case,
    Job,
    Zygote,
    damaged,
    finish,
    left_behind,
    texts,
    wait_for,
    within,
)

AT_WORK = {"train": ("", STEP), "evaluate": ("evaluation:nothing", "fault")}
"""command -> fault, and the file that shows that it is at work"""


@dataclass(frozen=True)
class Stop:
    """A signal to all processes of a command, as a terminal or a scheduler sends it."""

    number: signal.Signals
    command: str = "train"
    ranks: int = 1
    method: str = "fork"
    workers: int = 1

    def __str__(self) -> str:
        return f"{self.number.name}-{self.command}-{self.ranks}r-{self.workers}w-{self.method}"

    def case(self, fault: str = "", **env: str) -> Case:
        """The run that gets it."""
        return Case(fault, self.workers, self.ranks, self.method, self.command, env=env)


NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
LOADERS = (("fork", 0), ("fork", 1), ("spawn", 1), ("forkserver", 1))
WORK = [Stop(signal.SIGHUP, method="spawn"), Stop(signal.SIGINT), Stop(signal.SIGTERM, "evaluate")]
LONG_WORK = [Stop(number, command, ranks, *loader) for number, command, ranks, loader
             in itertools.product(NUMBERS, ("train", "evaluate"), (1, 2), LOADERS)]
START = [Stop(signal.SIGTERM, workers=0)]
LONG_START = [Stop(number, command, ranks, workers=0) for number, command, ranks
              in itertools.product(NUMBERS, ("train", "evaluate"), (1, 2))]
AGAIN = [Stop(signal.SIGINT, workers=0), Stop(signal.SIGINT, "evaluate")]
LONG_AGAIN = [Stop(signal.SIGINT, command, ranks, *loader) for command, ranks, loader
              in itertools.product(("train", "evaluate"), (1, 2), LOADERS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --long every combination, else a few."""
    rows = {"at_work": (WORK, LONG_WORK), "at_start": (START, LONG_START), "again": (AGAIN, LONG_AGAIN)}
    for name in rows.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, rows[name][metafunc.config.getoption("--long")], ids=str)


def ask(jobs: Sequence[Job], number: int) -> float:
    """Send the signal to every process of every rank; returns when, in seconds since the epoch."""
    for job in jobs:
        job.signal_group(number)
    return time.time()


def check_end(folder: Path, jobs: Sequence[Job], asked: float, code: int, together: bool = False) -> None:
    """The end is soon and as documented, and nothing is left.

    A rank that waits for another learns of the signal only when that one has gone; it may then end with code 2.
    """
    codes = finish(jobs)
    assert codes[-1] == code and set(codes) <= ({code} if together else {code, 2}), texts(jobs)
    assert max(job.ended for job in jobs) - asked < within(LIMIT)
    assert "Traceback" not in texts(jobs)
    assert left_behind(folder, jobs) == [] and damaged(folder) == []


def test_a_signal_at_work_saves_and_leaves(at_work: Stop, zygote: Zygote, tmp_path: Path) -> None:
    """At random points, and with the resume that follows: test_r5_preemption.py, tests/evaluation/."""
    fault, shown_by = AT_WORK[at_work.command]
    jobs = at_work.case(fault, BATCH_SECONDS="0.5", **SLOW).start(zygote, tmp_path)
    wait_for(tmp_path, shown_by, jobs)
    check_end(tmp_path, jobs, ask(jobs, at_work.number), code_of(at_work.number), together=True)
    said = texts(jobs)
    assert said.count("error: stopped by a signal") == 1, said
    assert at_work.command == "evaluate" or "continue with `--resume auto`" in said


def test_a_signal_at_start_up_ends_cleanly(at_start: Stop, zygote: Zygote, tmp_path: Path) -> None:
    jobs = at_start.case("start:hang").start(zygote, tmp_path)
    wait_for(tmp_path, "fault", jobs)
    check_end(tmp_path, jobs, ask(jobs, at_start.number), code_of(at_start.number))
    assert "stopped" in texts(jobs) and "error" not in texts(jobs)


def test_a_second_ctrl_c_stops_at_once(again: Stop, zygote: Zygote, tmp_path: Path) -> None:
    """Also within a step, or a batch of an evaluation, that takes minutes."""
    jobs = again.case("model:hang" if again.command == "train" else "evaluation:hang").start(zygote, tmp_path)
    wait_for(tmp_path, "fault", jobs)
    ask(jobs, again.number)
    time.sleep(0.3)
    assert [job.poll() for job in jobs] == [None] * again.ranks
    check_end(tmp_path, jobs, ask(jobs, again.number), 130)
    assert "error" not in texts(jobs)


def test_a_worker_that_hangs_does_not_keep_a_failing_run(zygote: Zygote, tmp_path: Path) -> None:
    jobs = Case("data set:hang", 1).start(zygote, tmp_path)
    wait_for(tmp_path, "fault", jobs)
    for _ in range(2):
        time.sleep(0.3)
        jobs[0].signal(signal.SIGINT)
    check_end(tmp_path, jobs, time.time(), 130)
