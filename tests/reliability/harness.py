"""Starts runs in which something goes wrong, and looks at what they leave behind."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.runners import checkpointing
from tests.helpers.toy import records
from tests.reliability.faulty import write_config
from tests.reliability.zygote import semaphore_prefix

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT, TORCHRUN_LIMIT = 5.0, 10.0
"""seconds from the fault to the end of the last process, on a machine with a free core for each"""
STOPPING = [pytest.param(signal.SIGTERM, id="SIGTERM"),
            pytest.param(signal.SIGHUP, id="SIGHUP", marks=pytest.mark.long),
            pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.long)]
"""signals that ask a command to stop; one by default"""
SLOW = {"STEP_SECONDS": "0.02"}
"""environment of a run whose steps can be told apart"""
STEP = "out/*/checkpoints/step_*"
"""where a run's checkpoints are, for `wait_for`"""
SHARED_MEMORY = Path("/dev/shm")
ALLOWED = ("lavis_lite-traceback-", "torchinductor_", "torchelastic_")
"""names in the folder of temporary files: a traceback is meant to stay, the others are torch's and torchrun's own"""


def within(seconds: float) -> float:
    """A limit as it is on this machine now: as many times longer as processes wait for each of its cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(folder: Path, **more: str) -> dict[str, str]:
    """An environment without launchers' variables; temporary files go into the folder."""
    kept = {key: value for key, value in os.environ.items()
            if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            and not key.startswith(("SLURM", "TORCHELASTIC", "FAULT"))}
    return kept | {"TMPDIR": str(temporary_folder(folder)), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY),
                   "LAVIS_LITE_CACHE": str(folder / "cache"), "LAVIS_LITE_OFFLINE": "1",
                   "FAULT_AFTER": str(folder / "out/*/checkpoints/step_*/manifest.json"),
                   "FAULT_MARK": str(folder / "fault")} | more


def temporary_folder(folder: Path) -> Path:
    """The folder of temporary files, seen as `tmp` in `folder`; its own path is short, as paths of sockets must be."""
    link = folder / "tmp"
    if not link.exists():
        short = tempfile.mkdtemp(prefix="lt")
        atexit.register(shutil.rmtree, short, ignore_errors=True)
        link.symlink_to(short)
    return link.resolve()


class Zygote:
    """The other end of `tests.reliability.zygote`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "tests.reliability.zygote"], cwd=REPOSITORY, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})

    def ask(self, job: dict[str, Any]) -> Any:
        """Send one line, read one line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@functools.cache
def warm_process() -> Zygote:
    """The one of this process of pytest: it takes seconds to start."""
    server = Zygote()
    atexit.register(server.close)
    return server


@dataclass
class Job:
    """One started command.

    Attributes:
        pid: it leads a session of the same number.
        before: what lay in shared memory when it was started.
        ended: when it was seen to have ended, in seconds since the epoch.
    """

    zygote: Zygote
    pid: int
    out: Path
    err: Path
    before: frozenset[str] = frozenset()
    code: int | None = None
    ended: float = 0.0

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.code is None:
            self.code = self.zygote.ask({"wait": self.pid})
            self.ended = time.time()
        return self.code

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code; a job that does not end is killed with all that it started.

        Raises:
            AssertionError: it did not end.
        """
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                state = "\n".join(wait_channels(self.pid))
                self.kill()
                raise AssertionError(f"still running after {seconds} s:\n{state}\n{self.out.read_text()}\n"
                                     f"{self.err.read_text()}")
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End every process of the session."""
        for pid in {self.pid, *processes_of(self.pid)}:  # it may not lead its session yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal as a terminal or a scheduler does, to all of its processes."""
        os.killpg(self.pid, number)


def start(zygote: Zygote, folder: Path, command: str, argv: Sequence[str], env: dict[str, str],
          open_files: int | None = None, method: str | None = None) -> Job:
    """Start a command of the package."""
    rank = env.get("RANK", "")
    out, err = folder / f"out{rank}.txt", folder / f"err{rank}.txt"
    for path in (out, err):  # a test may read them before the fork has opened them
        path.touch()
    before = shared_memory()
    pid = zygote.ask({"command": command, "argv": list(argv), "env": env, "out": str(out), "err": str(err),
                      "open_files": open_files, "method": method})
    return Job(zygote, pid, out, err, before)


@dataclass
class Case:
    """A run of `faulty` in which one thing goes wrong.

    Attributes:
        fault: `<place>:<cause>`; "" for none.
        workers, ranks, method: loader processes, processes, and how the former are started.
        command: train | evaluate.
    """

    fault: str = ""
    workers: int = 0
    ranks: int = 1
    method: str = "fork"
    command: str = "train"
    steps: int = 400
    env: dict[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    flags: Sequence[str] = ()
    open_files: int | None = None

    @property
    def faulty_rank(self) -> int:
        """The rank that meets the fault: the last; rank 0 alone saves."""
        return 0 if self.fault.startswith("save") else self.ranks - 1

    def start(self, zygote: Zygote, folder: Path) -> list[Job]:
        """Start all ranks."""
        config = write_config(folder, self.steps)
        group = {} if self.ranks == 1 else {"WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1",
                                            "MASTER_PORT": str(free_port()), "FAULT_RANK": str(self.faulty_rank)}
        after = {"FAULT_AFTER": str(config)} if self.command == "evaluate" or self.fault.startswith("start") else {}
        argv = ["--cfg-path", str(config), *self.flags, "--options", f"run.num_workers={self.workers}",
                f"run.worker_start_method={self.method}", *self.options]
        jobs = []
        for rank in range(self.ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
            env = environment(folder, **group, **own, **after, FAULT=self.fault, **self.env)
            jobs.append(start(zygote, folder, self.command, argv, env, self.open_files))
        return jobs


def finish(jobs: Sequence[Job], seconds: float = 60.0) -> list[int]:
    """Exit codes of all jobs; none is left running."""
    try:
        return [job.wait(seconds) for job in jobs]
    finally:
        for job in jobs:
            if job.code is None:
                job.kill()


def wait_for(folder: Path, pattern: str, jobs: Sequence[Job], seconds: float = 60.0) -> None:
    """Until a file below the folder is there and has contents.

    Raises:
        AssertionError: a job ended before, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while not any(path.is_dir() or path.stat().st_size for path in folder.glob(pattern)):
        assert time.monotonic() < deadline and all(job.poll() is None for job in jobs), texts(jobs)
        time.sleep(0.02)


def seconds_after_fault(folder: Path, jobs: Sequence[Job]) -> float:
    """How long the last process lived after the fault."""
    return max(job.ended for job in jobs) - float((folder / "fault").read_text())


# --- what has come of a run -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """All that must not depend on how often a run was killed.

    Attributes:
        weights: bytes of the last checkpoint's file.
        state: optimizer, counters and order of samples, by path.
        log: every number of every training step's line but times.
        scores: every number of the test; a run that is started again after its end tests again.
    """

    weights: bytes
    state: dict[str, Any]
    log: list[dict[str, Any]]
    scores: set[tuple[tuple[str, Any], ...]]


def outcome(folder: Path, steps: int) -> Outcome:
    """Of the one run under `folder/out`, which ended after so many steps."""
    (checkpoint,) = folder.glob(f"out/*/checkpoints/step_{steps:08d}")
    state = torch.load(checkpoint / checkpointing.STATE, weights_only=True)
    rows = records(checkpoint.parents[1])
    scores = {tuple(sorted(row.items())) for row in rows if "split" in row}
    return Outcome((checkpoint / checkpointing.WEIGHTS).read_bytes(), dict(_flat(state)),
                   [row for row in rows if "loss" in row], scores)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths in nested containers -> numbers, texts, and tensors as bytes."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{path}/{key}")
    else:
        yield path, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


# --- what is left ---------------------------------------------------------------------------------------------------
def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return found


def processes_with(mark: str) -> list[int]:
    """Living processes that were started with an environment in which `mark` stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            state = (path.parent / "stat").read_text().rpartition(")")[2][1]
            if mark.encode() in path.read_bytes() and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def wait_channels(session: int) -> list[str]:
    """What each process of a session waits in, for a failing test's message."""
    lines = []
    for pid in processes_of(session):
        with contextlib.suppress(OSError):
            lines.append(f"{pid} {Path(f'/proc/{pid}/wchan').read_text()} "
                         f"{Path(f'/proc/{pid}/cmdline').read_text()[:200]!r}")
    return lines


def left_behind(folder: Path, jobs: Sequence[Job], seconds: float = 2.0) -> list[str]:
    """Processes, temporary files and shared memory that outlive the jobs by more than `within(seconds)`."""
    deadline = time.monotonic() + within(seconds)  # workers that start end a little later
    while (found := list(_left(folder, jobs))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _left(folder: Path, jobs: Sequence[Job]) -> Iterator[str]:
    for job in jobs:
        yield from (f"process {pid}" for pid in processes_of(job.pid))
        yield from (f"semaphore {path.name}" for path in SHARED_MEMORY.glob(f"sem.{semaphore_prefix(job.pid)}-*"))
    hidden = [path for pattern in (".tmp-*", ".*.partial", ".lock-holder*") for path in folder.rglob(pattern)]
    for path in [*hidden, *(folder / "tmp").iterdir()]:
        if not path.name.startswith(ALLOWED) and not _by_torchs_check(path):
            yield f"file {path}"
    new = shared_memory() - jobs[0].before if jobs else frozenset()
    yield from (f"shared memory {name}" for name in sorted(new) if not Path(f"/proc/{name.split('_')[1]}").exists())


def shared_memory() -> frozenset[str]:
    """Names of torch's blocks in shared memory: torch_<process id>_<random>_<number>."""
    return frozenset(path.name for path in SHARED_MEMORY.glob("torch_*_*"))


def _by_torchs_check(path: Path) -> bool:
    """Whether it is an empty file of torch's DataLoader: it opens ten to see whether there are enough descriptors.

    Its own handler of SIGCHLD may raise between the making of such a file and the object that would remove it.
    """
    return bool(re.fullmatch(r"tmp\w{8}", path.name)) and path.is_file() and path.stat().st_size == 0


def damaged(folder: Path) -> list[str]:
    """What is wrong with the checkpoints of a run; an empty list if every one is as it was written."""
    runs = list((folder / "out").glob("*"))
    return [line for run in runs for step in checkpointing.steps_of(run) for line in checkpointing.verify(step)]


def texts(jobs: Sequence[Job]) -> str:
    """Everything that was said on stderr."""
    return "".join(path.read_text() for path in {job.err for job in jobs})


# --- full disks -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def small_disk(place: Path, kibibytes: int = 1024) -> Iterator[Path]:
    """A file system of so many KiB; the test is skipped where none may be mounted."""
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)],
                                       capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs may not be mounted here (that takes root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all that is free."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler
