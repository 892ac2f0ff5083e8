"""How a command ends: exit codes, signals (as exceptions, or as a request to stop), and unexpected errors."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
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
from types import FrameType, TracebackType
from typing import Any, NoReturn, TextIO

from lavis_lite import __version__, interrupted
from lavis_lite.errors import ConfigError, LavisLiteError, WorkerError
from lavis_lite.process.children import STOP_SIGNALS, explain
from lavis_lite.redaction import mask

SUCCESS, UNEXPECTED, USER_ERROR, PROBLEMS = 0, 1, 2, 3
"""PROBLEMS: the command did its work and reported problems with a part of its input"""
HANGUP, INTERRUPTED, UNREAD, TERMINATED = 129, 130, 141, 143
UNWRITTEN = 120  # Python's own code for output that could not be written
GRACE = 3.0
STEP_ANSWER = "finishing this step, then saving a checkpoint"
EVALUATION_ANSWER = "finishing this batch, then leaving"
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


def interrupts_raise() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from here on; while the command was imported it ended the process."""
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def need_working_folder() -> None:
    """Raise a ConfigError if the working folder was removed; torch's libraries would end the process without one."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the working folder does not exist any more; change to another folder.") from error


class Interrupted(LavisLiteError):
    """A signal stopped the run after its state was saved.

    Attributes:
        exit_code: of the process, see `lavis_lite.process.exits.code_of`.
        checkpoint: the folder to resume from; None: no checkpoint, and the message says what else is kept.
    """

    same_on_all_ranks = True

    def __init__(self, exit_code: int, checkpoint: Path | None, step: int, kept: str = "") -> None:
        self.exit_code, self.checkpoint, self.step = exit_code, checkpoint, step
        if checkpoint:
            kept = f"saved in {checkpoint}; continue with `--resume auto`"
        super().__init__(f"stopped by a signal after step {step}; {kept or 'nothing had to be saved'}.")


class SignalWatch:
    """Context manager: inside it the stop signals set `code` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. A signal that the caller ignores (`nohup`) stays ignored. Outside
    the main thread, in which alone Python allows handlers, it does nothing.

    Attributes:
        code: exit code of the signal that came; 0: none.
        answer: what the message to the user says will happen now.
    """

    def __init__(self) -> None:
        self.code = 0
        self.answer = STEP_ANSWER
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def answering(self, text: str) -> Iterator[None]:
        """Context manager: inside it the message to the user is another one."""
        before, self.answer = self.answer, text
        try:
            yield
        finally:
            self.answer = before

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked inside
            return
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = code_of(number)
        name = signal.Signals(number).name
        with contextlib.suppress(OSError, RuntimeError):  # the terminal is gone, or the handler cut into a write
            print(f"\n{name}: {self.answer} (Ctrl-C again stops at once).", file=sys.stderr, flush=True)


def open_closed_streams() -> None:
    """Connect standard streams that were closed at the start (`<&-`, `>&-`) to the null device.

    Without it Python has None in their place, and the next file that is opened gets their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def leave(code: int) -> NoReturn:
    """End the process with an exit code that no late signal changes.

    It does what Python does before its teardown: wait for threads, call `atexit` functions, flush. Open files are
    flushed too, as their finalisers would do; no other finaliser runs. The teardown itself would take the 3,000 modules
    of torch and transformers apart, for a second. A thread of gloo or NCCL that asks for the interpreter's lock
    meanwhile would abort the process ("terminate called without an active exception").

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
    unwritten = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    _flush_files()
    os._exit(code or max(unwritten))


def _flush(stream: TextIO) -> int:
    """Exit code if what was printed cannot be written; 0 also if the terminal is gone."""
    try:
        stream.flush()
    except BrokenPipeError:
        return UNREAD
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        if reason and error.errno != errno.EIO:  # type: ignore[union-attr]
            with contextlib.suppress(OSError):
                print(f"error: the output cannot be written: {reason}.", file=sys.stderr, flush=True)
            return UNWRITTEN
    return SUCCESS


def _flush_files() -> None:
    """Flush all open files, texts before the bytes below them."""
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    files = [item for item in gc.get_objects() if issubclass(type(item), kinds)]
    for file in sorted(files, key=lambda file: not isinstance(file, io.TextIOWrapper)):
        with contextlib.suppress(OSError, ValueError):  # it is closed, or lacks room; Python's teardown is silent too
            file.flush()


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
        if isinstance(inner, Exception) and not isinstance(inner, StopIteration) and not _is_routine(inner):
            return inner
        inner = inner.__context__
    return error


def _is_routine(error: Exception) -> bool:
    """Whether code continues after an error: a look-up that failed in its own frame, or an error within a library."""
    trace = error.__traceback__  # it begins in the frame that handles the error, and ends in the one that raised it
    return trace is None or trace.tb_next is None or not _is_own(trace.tb_frame.f_code.co_filename)


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
    own = [(file, line) for file, line in frames if _is_own(file)]
    file, line = (own or frames or [("?", "0")])[-1]
    return f"{file}:{line}"


def _is_own(file: str) -> bool:
    """Whether a source file is of this package or the user's, so none of Python's or of an installed library."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return file.startswith(str(PACKAGE)) or not file.startswith(("<", *libraries))


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
