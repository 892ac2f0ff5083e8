"""How a command ends: exit codes, signals as exceptions, unexpected errors, and limits of the system explained."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import platform
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lavis_lite import __version__
from lavis_lite.errors import LavisLiteError, WorkerError
from lavis_lite.process.children import STOP_SIGNALS
from lavis_lite.redaction import mask

SUCCESS, UNEXPECTED, USER_ERROR, PROBLEMS = 0, 1, 2, 3
"""PROBLEMS: the command did its work and reported problems with a part of its input"""
HANGUP, INTERRUPTED, UNREAD, TERMINATED = 129, 130, 141, 143
UNWRITTEN = 120  # Python's own code for output that could not be written
GRACE = 3.0
PACKAGE = Path(__file__).resolve().parents[1]


def code_of(number: int) -> int:
    """Exit code of a command that a signal stopped: 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM and SIGUSR1."""
    return {getattr(signal, "SIGHUP", None): HANGUP, signal.SIGINT: INTERRUPTED}.get(number, TERMINATED)


class Terminated(BaseException):
    """A signal other than Ctrl-C stops the process; as an exception it runs every `finally`.

    Attributes:
        exit_code: see `code_of`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = code_of(number)


@contextlib.contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Context manager: inside it a stop signal raises `Terminated`; Ctrl-C raises KeyboardInterrupt, as always.

    A signal that the caller ignores (`nohup`) stays ignored. Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:  # not in a process that was forked within
            raise Terminated(number)

    others = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    before = {number: signal.getsignal(number) for number in others}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # None: not set from Python
            signal.signal(number, stop)
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def stop_signals_ignored() -> Iterator[None]:
    """Context manager: inside it, while the final message is printed, only Ctrl-C stops the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in others}
    try:
        yield
    finally:
        _restore(before)


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        if handler is not None:
            signal.signal(number, handler)


def open_closed_streams() -> None:
    """Connect standard streams that were closed at the start (`<&-`, `>&-`) to the null device.

    Without it Python has None in their place, and the next file that is opened gets their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def leave(code: int) -> NoReturn:
    """End the process with an exit code that no late signal changes.

    It does what Python does before its teardown: wait for threads, call `atexit` functions, flush. The teardown itself
    would take the 3,000 modules of torch and transformers apart, for a second. A thread of gloo or NCCL that asks for
    the interpreter's lock meanwhile would abort the process ("terminate called without an active exception").

    After an error, libraries get `GRACE` seconds to finish, so a thread that never ends does not block the exit.
    """
    if code != SUCCESS:
        last = threading.Timer(GRACE, os._exit, (code,))
        last.daemon = True
        last.start()
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            if getattr(error, "errno", errno.EIO) != errno.EIO:  # EIO: no terminal any more
                code = code or UNWRITTEN
    os._exit(code)


# --- unexpected errors ------------------------------------------------------------------------------------------------
class _Report:
    folder: Path | None = None


def report_to(folder: Path | None) -> None:
    """Set the folder for the traceback of an unexpected error; None: the folder of temporary files."""
    _Report.folder = folder


def cause_of(error: BaseException) -> BaseException:
    """The error that was already raised when `Terminated` or Ctrl-C interrupted its handling; else `error` itself."""
    inner = error.__context__
    while isinstance(error, (Terminated, KeyboardInterrupt)) and inner is not None:
        if isinstance(inner, Exception) and not isinstance(inner, StopIteration):
            return inner
        inner = inner.__context__
    return error


def describe_unexpected(error: BaseException, rank: int) -> str:
    """A message about an error that is no `LavisLiteError`; writes its traceback to a file, which the message names."""
    text = mask("".join(traceback.format_exception(error)))
    location = _location(text)
    what = f"unexpected {_summary(error)} at {location}"
    advice = ("This is an error in lavis_lite; please report it with" if location.startswith(str(PACKAGE))
              else "The traceback is in")
    try:
        file = _write(text, rank)
    except OSError as problem:
        return f"{what}. The traceback could not be written ({problem}):\n{text}"
    return f"{what}. {advice} {file} (or add --traceback)."


def _summary(error: BaseException) -> str:
    """`KeyError: 7`, also if a loader worker raised it and the text is a whole traceback."""
    name, text = type(error).__name__, str(error).strip()
    if re.match(r"Caught \w+ in (DataLoader worker|pin memory)", text):
        return text.splitlines()[-1].strip()
    first = text.splitlines()[0] if text else ""
    return f"{name}: {first}" if first else name


def _location(text: str) -> str:
    """`file:line` of the innermost frame outside of Python's and installed libraries."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    own = [(file, line) for file, line in frames
           if file.startswith(str(PACKAGE)) or not (file.startswith("<") or any(map(file.startswith, libraries)))]
    file, line = (own or frames or [("?", "0")])[-1]
    return f"{file}:{line}"


def _write(text: str, rank: int) -> Path:
    torch = sys.modules.get("torch")
    head = (f"lavis_lite {__version__}, Python {platform.python_version()}, "
            f"torch {getattr(torch, '__version__', 'not loaded')}, {platform.platform()}\n\n")
    if _Report.folder is not None and _Report.folder.is_dir():
        path = _Report.folder / (f"traceback_rank{rank}.txt" if rank else "traceback.txt")
        path.write_text(head + text, encoding="utf-8")
        return path
    handle, name = tempfile.mkstemp(prefix="lavis_lite-traceback-", suffix=".txt")
    with open(handle, "w", encoding="utf-8") as file:
        file.write(head + text)
    return Path(name)


# --- limits of the system ---------------------------------------------------------------------------------------------
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
