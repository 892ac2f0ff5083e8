"""Limits of the system (memory, shared memory, open files, processes), and advice for a run that meets one."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from lavis_lite.errors import LavisLiteError, WorkerError

SHARED_MEMORY = Path("/dev/shm")
_MIB = 2**20
_SIGNALS = {"Killed": int(getattr(signal, "SIGKILL", 9)), "Bus error": int(getattr(signal, "SIGBUS", 7)),
            "Segmentation fault": int(signal.SIGSEGV), "Aborted": int(signal.SIGABRT)}
"""as torch names them"""
_FEWER_WORKERS = "Lower run.num_workers (0 needs none of it)"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Context manager: replace an exception caused by a limit with an error that names the limit and a remedy.

    Raises:
        WorkerError: in place of such an exception; all others pass unchanged.
    """
    try:
        yield
    except LavisLiteError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        if sentence := explain(error):
            raise WorkerError(sentence) from error
        raise


def explain(error: BaseException) -> str | None:
    """The limit that caused an exception, and a remedy; None: it has another cause.

    The text is searched, because torch has many wordings and wraps the exceptions of loader workers.
    """
    text = str(error)
    if dead := re.search(r"worker \(pid (\d+)\) (?:is killed by signal: ([A-Z][a-z ]*)|exited unexpectedly)", text):
        return describe_death(int(dead[1]), -_SIGNALS.get((dead[2] or "").strip(), -1))
    if re.search(r"shared memory|\bshm\b|/torch_\d", text) and not _too_many_files(error):
        return _shared_memory()
    if _too_many_files(error):
        return _open_files()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return _memory(text)
    return _system(error, text)


def _system(error: BaseException, text: str) -> str | None:
    """The limit that only the number of a system error shows."""
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC and getattr(error, "filename", None) is None and _shm_free() < _MIB:
        return _shared_memory()
    if number == errno.ENOMEM:
        return _memory(text)
    if isinstance(error, BlockingIOError) and number == errno.EAGAIN:
        return (f"the system allows no further process. {_FEWER_WORKERS}, or raise the limit of processes "
                "(`ulimit -u`).")
    return None


def describe_death(pid: int, exit_code: int) -> str:
    """Why a loader worker ended.

    Args:
        pid: its process id.
        exit_code: of the process, negative for a signal. torch turns a bus error and a segmentation fault into 1.
    """
    if exit_code == -signal.SIGKILL:
        return (f"the loader worker with process id {pid} was killed, most likely because memory ran out. Lower "
                "run.num_workers or run.batch_size_train, or give the job more memory (SLURM: --mem; a container: "
                "--memory).")
    if exit_code == -getattr(signal, "SIGBUS", 0) or _shm_free() < _MIB:
        return _shared_memory()
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    return (f"the loader worker with process id {pid} crashed ({how}). A library that reads images or video is the "
            "likely cause: run.num_workers=0 with `python -X faulthandler` shows the line.")


def remove_shared_memory_of(pid: int) -> None:
    """Remove what a dead process left in shared memory.

    torch makes a named block and removes its name at once. A process that crashes or is killed in between leaves it.
    """
    for path in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):  # another user's, or already gone
            path.unlink()


def _too_many_files(error: BaseException) -> bool:
    words = ("Too many open files", "items of ancdata", "too many fds")
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(word in str(error) for word in words)


def _open_files() -> str:
    limit = _file_limit()
    return (f"this process may not open more files{f' (its limit is {limit})' if limit else ''}. Raise the limit with "
            "`ulimit -n 65536` before the start, or lower run.num_workers.")


def _file_limit() -> int | None:
    with contextlib.suppress(ImportError, OSError):
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None


def _shared_memory() -> str:
    size = ""
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        size = f" ({usage.free / _MIB:.0f} of {usage.total / _MIB:.0f} MiB are free)"
    return (f"{SHARED_MEMORY}, through which loader workers hand over batches, is full{size}. {_FEWER_WORKERS}, or "
            "give the container more: `docker run --shm-size=8g`, or --ipc=host.")


def _shm_free() -> int:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else _MIB


def _memory(text: str) -> str:
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    device = "the GPU's memory" if "CUDA" in text or "HIP" in text else "memory"
    return (f"{device} ran out{f' when {asked[1]} were requested' if asked else ''}. Lower run.batch_size_train (and "
            "raise run.accum_grad_iters by as much), run.batch_size_eval or run.num_workers. Or set run.amp=true.")
