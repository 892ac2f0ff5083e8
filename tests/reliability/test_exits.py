"""Every way out ends: soon, with one cause told once, the documented exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lavis_lite.runners import checkpointing
from tests.reliability.harness import (
    LIMIT,
    SLOW,
    STEP,
    Case,
    Zygote,
    damaged,
    finish,
    left_behind,
    processes_of,
    seconds_after_fault,
    texts,
    wait_for,
    within,
)

UNEXPECTED = (1, "error: unexpected KeyError: 'injected' at")
EXPECTED = {
    "exception": UNEXPECTED,
    "own": (2, "injected: this row is wrong"),
    "memory": (2, "error: memory ran out"),
    "cuda": (2, "the GPU's memory ran out when 2.00 GiB were requested"),
    "shm": (2, "docker run --shm-size"),
    "files": (2, "ulimit -n"),
    "kill": (2, "was killed, most likely because memory ran out"),
    "segfault": (2, "crashed (signal 11)"),
}
"""cause -> exit code of the process that meets it, and words that it says"""


def expected(case: Case) -> tuple[int, str]:
    """Exit code and words of the process that meets the fault."""
    place, _, cause = case.fault.partition(":")
    if place == "collate":
        return 1, "error: unexpected"
    return (-signal.SIGKILL, "") if cause == "kill" and not case.workers else EXPECTED[cause]


def check(case: Case, zygote: Zygote, folder: Path, code: int, words: str) -> None:
    """Run a case to its end and look at everything that is promised."""
    if case.fault.startswith("evaluation"):
        case.steps = 10
    jobs = case.start(zygote, folder)
    codes = finish(jobs)
    said = texts(jobs)
    assert codes[case.faulty_rank] == code, said
    assert all(codes), codes
    assert seconds_after_fault(folder, jobs) < within(LIMIT)
    told = said.count("error:")  # rank 0 takes its store along, and rank 1 cannot learn that the cause is told
    assert told == 1 or (case.ranks == 2 and case.faulty_rank == 0 and "has gone" in said and told == 2), said
    assert words in said, said
    assert "Traceback" not in said
    assert left_behind(folder, jobs) == []
    assert damaged(folder) == []
    if case.command == "train" and not case.fault.startswith("start"):
        assert checkpointing.newest_good(folder / "out") is not None


ROWS = [Case("data set:exception", workers) for workers in (0, 1)]
ROWS += [Case(f"{place}:exception", 1) for place in ("collate", "model", "save", "evaluation", "start")]
ROWS += [Case(f"data set:{cause}", 1) for cause in ("own", "shm", "files", "kill")]
ROWS += [Case("model:memory", 1), Case("model:cuda", 1)]
ROWS += [Case(f"{place}:exception", 1, ranks=2) for place in ("data set", "model")]
ROWS += [Case("evaluation:exception", 1, command="evaluate"), Case("data set:kill", 1, command="evaluate")]

LONG_ROWS = [Case(f"{place}:{cause}", workers, ranks, method, command)
             for command in ("train", "evaluate")
             for method in ("fork", "spawn", "forkserver")
             for ranks in (1, 2)
             for workers in (0, 1, 4)
             for place in ("data set", "collate", "model", "optimizer", "save", "evaluation")
             for cause in (("exception",) if place == "collate" else ("exception", "own", "memory", "shm", "files"))
             if not (command == "evaluate" and place in ("model", "optimizer", "save"))
             if workers or method == "fork"]
LONG_ROWS += [Case(f"data set:{cause}", workers, ranks, method, command)
              for command in ("train", "evaluate")
              for method in ("fork", "spawn", "forkserver")
              for ranks in (1, 2)
              for workers in (1, 4)
              for cause in ("kill", "segfault")]


def name_of(case: Case) -> str:
    """For the test's name."""
    return f"{case.fault.replace(' ', '_')}-{case.workers}w-{case.ranks}r-{case.method}-{case.command}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --long every combination, else a few."""
    if "case" in metafunc.fixturenames:
        rows = ROWS + LONG_ROWS if metafunc.config.getoption("--long") else ROWS
        metafunc.parametrize("case", rows, ids=name_of)


def test_an_error_ends_the_run(case: Case, zygote: Zygote, tmp_path: Path) -> None:
    check(case, zygote, tmp_path, *expected(case))


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.long)])
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("command", ["train", pytest.param("evaluate", marks=pytest.mark.long)])
def test_sigkill_of_a_rank_leaves_no_process(command: str, ranks: int, method: str, zygote: Zygote,
                                             tmp_path: Path) -> None:
    fault, shown_by = {"train": ("", STEP), "evaluate": ("evaluation:nothing", "fault")}[command]
    case = Case(fault, 1, ranks, method, command, env={**SLOW, "BATCH_SECONDS": "0.5"})
    jobs = case.start(zygote, tmp_path)
    wait_for(tmp_path, shown_by, jobs)
    jobs[-1].signal(signal.SIGKILL)
    killed = time.time()
    codes = finish(jobs)
    assert codes[-1] == -signal.SIGKILL and codes[:-1] == [2] * (ranks - 1)
    assert max(job.ended for job in jobs) - killed < within(LIMIT)
    assert texts(jobs).count("error:") == ranks - 1
    while time.time() < killed + within(LIMIT) and any(processes_of(job.pid) for job in jobs):
        time.sleep(0.02)
    assert [name for name in left_behind(tmp_path, jobs) if not name.startswith("file ")] == []
    assert damaged(tmp_path) == []


def test_too_few_open_files_are_told_of(zygote: Zygote, tmp_path: Path) -> None:
    jobs = Case(workers=4, open_files=24).start(zygote, tmp_path)
    assert finish(jobs) == [2]
    assert "ulimit -n" in texts(jobs) and "Traceback" not in texts(jobs)
    assert left_behind(tmp_path, jobs) == []


def test_the_traceback_is_in_a_file_and_shown_on_request(zygote: Zygote, tmp_path: Path) -> None:
    jobs = Case("model:exception", flags=["--traceback"]).start(zygote, tmp_path)
    finish(jobs)
    (file,) = tmp_path.glob("out/*/traceback.txt")
    assert "KeyError: 'injected'" in file.read_text() and str(file) in texts(jobs)
    assert "Traceback (most recent call last)" in texts(jobs)
    assert os.path.basename(__file__).replace("test_exits", "faulty") in texts(jobs)


def test_a_long_path_of_temporary_files_stops_no_worker(zygote: Zygote, tmp_path: Path) -> None:
    """Sockets below it would have longer paths than the system takes, and no batch would ever arrive."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    jobs = Case("data set:exception", 1, env={"TMPDIR": str(deep)}).start(zygote, tmp_path)
    assert finish(jobs) == [1]
    assert left_behind(tmp_path, jobs) == [] and not list(deep.iterdir())
