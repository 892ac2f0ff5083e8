"""A clean stop by a signal: the signal sets a code, and the step loop stops between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lavis_lite.errors import LavisLiteError
from lavis_lite.process.children import STOP_SIGNALS
from lavis_lite.process.exits import code_of

STEP_ANSWER = "finishing this step, then saving a checkpoint"
EVALUATION_ANSWER = "finishing this batch, then leaving"


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
