"""Every way out ends under torchrun too, whoever meets the fault: a rank, its workers, or torchrun itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.faulty import write_config
from tests.reliability.harness import (
    REPOSITORY,
    TORCHRUN_LIMIT,
    damaged,
    environment,
    left_behind,
    processes_with,
    within,
)

RUN = "-m torch.distributed.run --standalone --nproc-per-node=2 --monitor-interval=0.1"


@contextlib.contextmanager
def torchrun(folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Two ranks with a loader worker each; whatever is left at the end is killed."""
    command = [sys.executable, *RUN.split(), "train.py", "--cfg-path", str(write_config(folder, 400)), "--options",
               "run.num_workers=1"]
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(folder, FAULT_RANK="1", **env), text=True,
                                   stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        for pid in processes_with(str(folder / "fault")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str], seconds: float = 90.0) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline and process.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.05)


def ended_after(process: subprocess.Popen[str], folder: Path, since: float) -> float:
    """Seconds from then until torchrun and everything that it started are gone."""
    process.wait(60)
    while processes_with(str(folder / "fault")) and time.time() < since + 60:
        time.sleep(0.05)
    return time.time() - since


@pytest.mark.long
@pytest.mark.parametrize("fault", ["data set:exception", "data set:kill", "collate:exception", "model:exception",
                                   "model:kill", "model:memory", "optimizer:exception", "data set:own",
                                   "start:exception", "start:kill"])
def test_a_fault_of_one_rank_ends_the_job(fault: str, tmp_path: Path) -> None:
    """A fault, and a restart after it, are always tried by test_restarts.py."""
    after = {"FAULT_AFTER": str(tmp_path)} if fault.startswith("start") else {}
    with torchrun(tmp_path, FAULT=fault, **after) as process:
        wait_for(tmp_path, "fault", process)
        since = float((tmp_path / "fault").read_text())
        assert ended_after(process, tmp_path, since) < within(TORCHRUN_LIMIT)
    said = (tmp_path / "said.txt").read_text()
    assert process.returncode == 1  # torchrun's own code; those of its ranks are in its table
    told = said.count("error: ")
    assert told == 1 or (fault.endswith(":kill") and told <= 1), said
    assert damaged(tmp_path) == [] and left_behind(tmp_path, []) == []


@pytest.mark.long
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2),
                                               (signal.SIGHUP, 1), (signal.SIGKILL, 1)])
def test_a_signal_to_torchrun_ends_the_job(number: int, times: int, tmp_path: Path) -> None:
    """Of a killed torchrun the ranks save and leave by themselves."""
    with torchrun(tmp_path, STEP_SECONDS="0.05") as process:
        wait_for(tmp_path, "out/*/checkpoints/step_*", process)
        before = len(list(tmp_path.glob("out/*/log.jsonl")))
        since = time.time()
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number) if number != signal.SIGKILL else process.kill()
            time.sleep(0.3)
        assert ended_after(process, tmp_path, since) < within(TORCHRUN_LIMIT)
    assert before == 1 and process.returncode != 0
    assert damaged(tmp_path) == []
    if number != signal.SIGKILL:
        assert left_behind(tmp_path, []) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
def test_a_full_dev_shm_is_told_of(tmp_path: Path) -> None:
    """A container's, for real: 64 KiB in a mount namespace of its own."""
    command = ("mount -t tmpfs -o size=64k none /dev/shm && exec "
               f"{sys.executable} train.py --cfg-path {write_config(tmp_path, 400)} --options run.num_workers=1")
    began = time.time()
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], cwd=REPOSITORY, text=True, capture_output=True,
                          env=environment(tmp_path, PADDING="100000"), timeout=100, check=False)
    if "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 2, done.stderr
    assert "/dev/shm" in done.stderr and "docker run --shm-size" in done.stderr and "Traceback" not in done.stderr
    assert time.time() - began < within(60) and left_behind(tmp_path, []) == []
