"""The folder of a run: who may write it, what a killed run left in it, and which checkpoint to go on from."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lavis_lite.errors import CheckpointError, LavisLiteError
from lavis_lite.runners import checkpointing

LOCK, HOLDER = ".lock", ".lock-holder.json"
_STRAYS = (".tmp-step_*", ".old-step_*", ".tmp-probe*", ".tmp-last.json-*", ".tmp-best.json-*")


class RunBusyError(LavisLiteError):
    """Another process trains in the run folder."""


class RunLock:
    """The right to train in a run folder. The system takes it back when the process ends, however that happens.

    On file systems without locks nothing is locked.

    Args:
        run_dir: the run folder; it exists.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self._lock = FileLock(str(self.run_dir / LOCK))

    def acquire(self) -> RunLock:
        """Take the lock.

        Raises:
            RunBusyError: another process holds it; the message says which.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunBusyError(
                f"another process is training in {self.run_dir}{_holder(self.run_dir)}. Stop it first, or wait until "
                "it ends. Without --resume a run begins in a folder of its own.") from None
        except (OSError, NotImplementedError):  # no locks here
            return self
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
            (self.run_dir / HOLDER).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return self

    def release(self) -> None:
        """Give the lock back and remove its files."""
        if self._lock.is_locked:
            for name in (HOLDER, LOCK):  # before the release: afterwards they may be another process's
                (self.run_dir / name).unlink(missing_ok=True)
            self._lock.release()


def _holder(run_dir: Path) -> str:
    try:
        facts = json.loads((run_dir / HOLDER).read_text(encoding="utf-8"))
        return f" (process {facts['pid']} on {facts['host']}, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_busy(run_dir: Path) -> bool:
    """Whether a process trains in a run folder."""
    if not (Path(run_dir) / LOCK).exists():
        return False
    lock = FileLock(str(Path(run_dir) / LOCK))
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def newest_to_resume(output_dir: Path, start_over: bool) -> Path | None:
    """The newest good checkpoint under `output_dir`; None if there is none at all.

    Args:
        output_dir: the parent of run folders.
        start_over: begin at step 0 if every checkpoint is damaged.

    Raises:
        CheckpointError: there are checkpoints, all damaged, and `start_over` is false.
    """
    damaged: list[str] = []

    def note(line: str) -> None:
        damaged.append(line)
        print(line, flush=True)

    found = checkpointing.newest_good(Path(output_dir), note)
    if found is not None or not damaged:
        return found
    if start_over:
        print(f"every checkpoint under {output_dir} is damaged: starting over", flush=True)
        return None
    raise CheckpointError(
        f"--resume auto: every checkpoint under {output_dir} is damaged ({len(damaged)}, listed above), so going on "
        "would begin at step 0 again. Restore one of them from a copy; or, to begin again, add --start-over.")


def remove_strays(output_dir: Path) -> None:
    """Remove the half-written checkpoints of runs under `output_dir` that were killed; running ones are left alone."""
    for run_dir in _runs_with_strays(Path(output_dir)):
        lock = RunLock(run_dir)
        with contextlib.suppress(RunBusyError, OSError):  # in use, or somebody else's
            lock.acquire()
            try:
                for stray in _strays(run_dir):
                    shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            finally:
                lock.release()


def _runs_with_strays(output_dir: Path) -> Iterator[Path]:
    for run_dir in sorted(output_dir.iterdir()) if output_dir.is_dir() else []:
        if (run_dir / "config.yaml").is_file() and _strays(run_dir) and not is_busy(run_dir):
            yield run_dir


def _strays(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    return [path for pattern in _STRAYS for path in folder.glob(pattern)]
