"""Child processes that never outlive their parent, that only their parent may end, and that say why they died.

Three rules hold for every process started here (loader workers, shard writers, world generators):

- A signal to the whole process group (Ctrl-C, SIGTERM of torchrun or a scheduler) does not reach the child. The parent
  decides, and may need the worker to finish its step.
- When the parent ends, it kills the child. It does not terminate it, because the child ignores SIGTERM.
- When the parent itself is killed, the child dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, context, util
from pathlib import Path
from typing import Any

from lavis_lite.errors import WorkerError

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""the signals that ask a run to stop; Windows has only the first two"""
_FOLDERS = "ll-"
"""prefix of temporary folders, ll-<process id>-<random>; short, because paths of sockets must be"""
_LONGEST_ROOT = 60
"""bytes of their parent's path; a socket's whole path has at most 104 bytes on macOS, 108 on Linux"""
_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux' prctl"""


def follow_parent(sign: int = getattr(signal, "SIGKILL", signal.SIGTERM)) -> None:
    """Let this process end with its parent: Linux sends it `sign`, on other systems a thread ends it.

    Linux knows only the process that forked this one. With the start method forkserver that is the server, which lives
    as long as any of its children. So a thread waits for the real parent there too.
    """
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(sign), 0, 0, 0)
        if parent is not None and not parent.is_alive():  # it died before the call above
            os._exit(1)
        if parent is None or parent.pid == os.getppid():
            return
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Context manager: inside it no stop signal reaches this process. Processes started inside never get one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SERVER_KILLED = ("the process that starts loader workers (run.worker_start_method) was killed, most likely because "
                  "memory ran out. Lower run.num_workers, or give the job more memory (SLURM: --mem; a container: "
                  "--memory).")


class _Worker:
    """Base of the process classes of all start methods."""

    def run(self) -> None:
        """Follow the parent, then do the work."""
        if hasattr(signal, "pthread_sigmask"):  # forkserver's children do not inherit the mask
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        follow_parent()
        super().run()  # type: ignore[misc]

    @classmethod
    def _Popen(cls, process: Any) -> Any:  # noqa: N802 (multiprocessing's name)
        """Start the process; multiprocessing calls `terminate` of what is returned when the parent leaves.

        Raises:
            WorkerError: the server that starts processes was killed.
        """
        process._config["tempdir"] = temporary_folder()
        try:
            with stop_signals_blocked():
                started = super()._Popen(process)  # type: ignore[misc]
        except (EOFError, ConnectionError) as error:  # from the socket or pipe to it
            raise WorkerError(_SERVER_KILLED) from error
        started.terminate = started.kill
        return started


class SpawnWorker(_Worker, context.SpawnProcess):
    """Started as a new interpreter."""


class _SpawnContext(context.SpawnContext):
    Process = SpawnWorker


CONTEXTS: dict[str, context.BaseContext] = {"spawn": _SpawnContext()}
"""start method -> context; its processes follow the rules above"""

if sys.platform != "win32":

    class ForkWorker(_Worker, context.ForkProcess):
        """Started as a copy of this process."""

    class ForkServerWorker(_Worker, context.ForkServerProcess):
        """Started as a copy of a server process that has imported little."""

    class _ForkContext(context.ForkContext):
        Process = ForkWorker

    class _ForkServerContext(context.ForkServerContext):
        Process = ForkServerWorker

    CONTEXTS |= {"fork": _ForkContext(), "forkserver": _ForkServerContext()}


def worker_context(method: str | None = None, modules: Sequence[str] = ()) -> context.BaseContext:
    """The context of a start method.

    Args:
        method: None: the platform's default.
        modules: imported once by the server of forkserver, so that workers share them. It passes over those it lacks.
    """
    method = method or multiprocessing.get_start_method()
    if method != "fork" and sys.platform != "win32":
        _start_semaphore_tracker()
    if method == "forkserver":
        CONTEXTS[method].set_forkserver_preload(["__main__", *modules])
    return CONTEXTS[method]


def _start_semaphore_tracker() -> None:
    """Start the process that removes the semaphores of killed processes, so that no stop signal reaches it.

    multiprocessing starts it with the first semaphore, open to SIGHUP and SIGUSR1. A signal to the whole process group
    then kills it before its work is done.
    """
    from multiprocessing import resource_tracker  # not on Windows

    with stop_signals_blocked():
        resource_tracker.ensure_running()


def temporary_folder() -> str:
    """The folder for the sockets of this process' workers, made at the first call.

    By default each worker makes one of its own, which stays behind if the worker is killed. This one is removed when
    the process ends. Folders of killed processes are removed here.
    """
    settings = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if settings.get("tempdir") is None:
        remove_stale_folders()
        settings["tempdir"] = tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-", dir=_socket_root())
        util.Finalize(None, shutil.rmtree, (settings["tempdir"],), {"ignore_errors": True}, exitpriority=-100)
    return str(settings["tempdir"])


def _socket_root() -> str:
    """The folder of temporary files, or one with a shorter path if paths of sockets below it would be too long.

    With too long a path workers cannot hand over their batches, and the parent waits for ever.
    """
    usual = tempfile.gettempdir()
    shorter = [folder for folder in ("/tmp", "/var/tmp") if os.access(folder, os.W_OK | os.X_OK)]
    return usual if len(os.fsencode(usual)) <= _LONGEST_ROOT or not shorter else shorter[0]


def remove_stale_folders() -> None:
    """Remove the temporary folders of processes that have ended."""
    for folder in Path(_socket_root()).glob(f"{_FOLDERS}*-*"):
        pid = folder.name.removeprefix(_FOLDERS).partition("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)  # another user's stays


def _lives(pid: int) -> bool:
    """Whether a process runs. A killed one that its parent has not collected yet (a zombie) does not."""
    if os.name != "posix":  # on Windows signal 0 ends processes
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:  # Linux
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


@contextlib.contextmanager
def worker_pool(workers: int, what: str, method: str | None = None, initializer: Callable[..., None] | None = None,
                initargs: tuple[Any, ...] = ()) -> Iterator[ProcessPoolExecutor]:
    """Context manager: a pool of processes, which end with the block; at once if an exception ends it.

    Args:
        workers: number of processes.
        what: the work, for messages ("writing shards").
        method: start method; None: the platform's default.
        initializer, initargs: called in every process first.

    Raises:
        WorkerError: a process was killed.
    """
    pool = ProcessPoolExecutor(workers, worker_context(method), initializer, initargs)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerError(f"a process that was {what} was killed, most likely because memory ran out. "
                          "Use fewer workers, or give the job more memory.") from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# --- limits of the system ---------------------------------------------------------------------------------------------
SHARED_MEMORY = Path("/dev/shm")
_MIB = 2**20
_SIGNALS = {"Killed": int(getattr(signal, "SIGKILL", 9)), "Bus error": int(getattr(signal, "SIGBUS", 7)),
            "Segmentation fault": int(signal.SIGSEGV), "Aborted": int(signal.SIGABRT)}
"""as torch names them"""
_FEWER_WORKERS = "Lower run.num_workers (0 needs none of it)"


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
    if "determine home directory" in text:  # pathlib: "~name", or "~" without HOME
        return ("a path begins with ~, but this system does not know the home folder. Write the whole path, or set "
                "HOME.")
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
