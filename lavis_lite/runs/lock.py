"""The lock of a run folder: one process trains in it, and the system releases the lock when that process ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from lavis_lite.errors import LavisLiteError

LOCK, HOLDER = ".lock", ".lock-holder.json"


class RunBusyError(LavisLiteError):
    """Another process trains in the run folder."""


class RunLock:
    """The lock of one run folder, held until `release` or until this object or this process ends.

    On file systems without locks it does nothing.

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
        except (OSError, NotImplementedError):  # a file system without locks
            return self
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk; the lock itself needs no space
            (self.run_dir / HOLDER).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return self

    def release(self) -> None:
        """Release the lock and remove its files."""
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
