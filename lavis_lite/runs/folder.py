"""Run folders: their lock, which checkpoint to resume from, and what killed runs left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import weakref
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from lavis_lite.checkpoints.manifest import CONFIG, STATE
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError, LavisLiteError
from lavis_lite.runners import checkpointing

LOCK, HOLDER = ".lock", ".lock-holder.json"
_LEFTOVERS = (".tmp-step_*", ".old-step_*", ".tmp-probe*", ".tmp-last.json-*", ".tmp-best.json-*")


def newest_to_resume(output_dir: Path, start_over: bool) -> Path | None:
    """The newest good checkpoint under `output_dir`; None if there are no checkpoints.

    Args:
        output_dir: the parent of run folders.
        start_over: begin at step 0 if every checkpoint is damaged.

    Raises:
        CheckpointError: there are checkpoints, all damaged, and `start_over` is false.
    """
    damaged: list[str] = []

    def log(line: str) -> None:
        damaged.append(line)
        print(line, flush=True)

    found = checkpointing.newest_good(Path(output_dir), log)
    if found is not None or not damaged:
        return found
    if start_over:
        print(f"every checkpoint under {output_dir} is damaged: starting over", flush=True)
        return None
    raise CheckpointError(
        f"--resume auto: every checkpoint under {output_dir} is damaged ({len(damaged)}, listed above), so the run "
        "would begin at step 0 again. Restore one of them from a copy; or, to begin again, add --start-over.")


def accumulation_for_global_batch(checkpoint: Path, run: RunConfig, ranks: int) -> int:
    """Micro-batches per step that keep the run's global batch on another number of ranks (a restart on fewer hosts).

    If no number fits, `run.accum_grad_iters` stays, and the runner reports what differs.

    Args:
        checkpoint: an undamaged one.
        run: the section of the resumed run.
        ranks: the number of ranks now.
    """
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)
    before, micro = state["order"]["global batch"], run.batch_size_train * ranks
    saved = OmegaConf.create((checkpoint / CONFIG).read_text(encoding="utf-8"))
    if (before == micro * run.accum_grad_iters or before % micro
            or OmegaConf.select(saved, "run.batch_size_train") != run.batch_size_train):  # the user wants another batch
        return run.accum_grad_iters
    print(f"note: run.accum_grad_iters is {before // micro} instead of {run.accum_grad_iters}, to keep the run's "
          f"{before} samples per step with {ranks} process{'es' if ranks > 1 else ''} and "
          f"run.batch_size_train={run.batch_size_train}", flush=True)
    return int(before // micro)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what killed runs under `output_dir` left half-written, and their locks; running ones are not touched."""
    for run_dir in sorted(Path(output_dir).iterdir()) if Path(output_dir).is_dir() else []:
        left = [path for pattern in _LEFTOVERS for path in (run_dir / "checkpoints").glob(pattern)]
        left += (run_dir / "results").glob(".tmp-*")
        if not (left or (run_dir / HOLDER).exists()) or not (run_dir / CONFIG).is_file() or is_busy(run_dir):
            continue
        lock = RunLock(run_dir)
        with contextlib.suppress(RunBusyError, OSError):  # in use, or another user's
            lock.acquire()
            try:
                for path in left:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                lock.release()  # removes its files


# --- the lock ---------------------------------------------------------------------------------------------------------
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
        self._lock = FileLock(str(self.run_dir / LOCK), thread_local=False)  # any thread may release it
        # also at the end of the process: a signal may come just before the caller's `release` and skip it
        self._release = weakref.finalize(self, _release, self._lock, self.run_dir, os.getpid())

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
                "it ends. Without --resume a run begins in a new folder.") from None
        except (OSError, NotImplementedError):  # a file system without locks
            return self
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk; the lock itself needs no space
            (self.run_dir / HOLDER).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return self

    def release(self) -> None:
        """Release the lock and remove its files."""
        self._release()


def _release(lock: FileLock, run_dir: Path, owner: int) -> None:
    if lock.is_locked and os.getpid() == owner:  # not in a forked process
        for name in (HOLDER, LOCK):  # before the release: afterwards they may be another process's
            (run_dir / name).unlink(missing_ok=True)
        lock.release()


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
