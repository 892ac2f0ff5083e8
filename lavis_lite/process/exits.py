"""How a command ends: its exit codes, signals as exceptions, and the traceback of an error that nobody foresaw."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import re
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
from lavis_lite.process.children import STOP_SIGNALS
from lavis_lite.redaction import mask

SUCCESS, UNEXPECTED, USER_ERROR = 0, 1, 2
HANGUP, INTERRUPTED, UNREAD, TERMINATED = 129, 130, 141, 143
GRACE = 3.0
PACKAGE = Path(__file__).resolve().parents[1]


def code_of(number: int) -> int:
    """Exit code of a command that a signal stopped: 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM and SIGUSR1."""
    return {getattr(signal, "SIGHUP", None): HANGUP, signal.SIGINT: INTERRUPTED}.get(number, TERMINATED)


class Terminated(BaseException):
    """A signal other than Ctrl-C asks the process to stop; it passes through every `finally` on its way out.

    Attributes:
        exit_code: see `code_of`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = code_of(number)


@contextlib.contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Within it a stop signal raises `Terminated`; Ctrl-C raises KeyboardInterrupt, as always in Python.

    A signal that the caller ignores (`nohup`) stays ignored. Outside the main thread nothing is changed.
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
    """Within it, while the last words are said, only Ctrl-C is heard."""
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


def leave(code: int) -> NoReturn:
    """End the process with an exit code that no late signal changes.

    After an error, what libraries do at the end may take `GRACE` seconds; a thread that never ends is not waited for.
    """
    if code != SUCCESS:
        last = threading.Timer(GRACE, os._exit, (code,))
        last.daemon = True
        last.start()
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)
    if _Native.threads:
        _end_without_teardown(code)
    sys.exit(code)


class _Native:
    threads = False


def native_threads_started() -> None:
    """Say that a library's own threads may still hold Python objects when the process ends (gloo's and NCCL's do).

    Python stops such a thread in the middle of C++ code when it asks for the interpreter's lock during teardown;
    C++ then aborts the process: "terminate called without an active exception", signal 6, after a run that succeeded.
    """
    _Native.threads = True


def _end_without_teardown(code: int) -> NoReturn:
    """What Python does at the end up to its teardown: wait for threads, call `atexit` functions, flush."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or closed
            stream.flush()
    os._exit(code)


# --- an error that nobody foresaw -----------------------------------------------------------------------------------
class _Report:
    folder: Path | None = None


def report_to(folder: Path | None) -> None:
    """The folder that the traceback of an unexpected error is written to; None: that of temporary files."""
    _Report.folder = folder


def cause_of(fault: BaseException) -> BaseException:
    """The error behind a signal: what was already on its way out when `Terminated` or Ctrl-C cut in, if anything."""
    inner = fault.__context__
    while isinstance(fault, (Terminated, KeyboardInterrupt)) and inner is not None:
        if isinstance(inner, Exception) and not isinstance(inner, StopIteration):
            return inner
        inner = inner.__context__
    return fault


def describe_unexpected(fault: BaseException, rank: int) -> str:
    """One message about an error that is no `LavisLiteError`; its traceback is written to a file that is named."""
    text = mask("".join(traceback.format_exception(fault)))
    summary = _summary(fault)
    place = _location(text)
    whose = ("This is an error in lavis_lite; please report it with" if place.startswith(str(PACKAGE))
             else "The traceback is in")
    try:
        file = _write(text, rank)
    except OSError as problem:
        return f"unexpected {summary} at {place}. The traceback could not be written ({problem}):\n{text}"
    return f"unexpected {summary} at {place}. {whose} {file} (or add --traceback)."


def _summary(fault: BaseException) -> str:
    """`KeyError: 7`, also of an error that a loader worker met, whose text is a whole traceback."""
    name, text = type(fault).__name__, str(fault).strip()
    if re.match(r"Caught \w+ in (DataLoader worker|pin memory)", text):
        return text.splitlines()[-1].strip()
    first = text.splitlines()[0] if text else ""
    return f"{name}: {first}" if first else name


def _location(text: str) -> str:
    """`file:line` of the innermost frame that is not of Python's or an installed library."""
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
