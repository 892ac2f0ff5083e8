"""Leaving cleanly when asked to: a signal becomes a wish, the step loop grants it between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from lavis_lite.errors import LavisLiteError

T = TypeVar("T")

EXIT_CODES = {signal.SIGINT: 130}
"""By signal; everything else that asks us to go (SIGTERM, SIGUSR1 of SLURM) ends in 143, which schedulers requeue."""
DEFAULT_EXIT_CODE = 143
STEP_ANSWER = "finishing this step, then saving a checkpoint"
EVALUATION_ANSWER = "finishing this batch, then leaving"


class Interrupted(LavisLiteError):
    """The run stopped because a signal asked for it, after its state was saved.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1; the command line exits with it.
        checkpoint: the folder to resume from; None: there is none, and `kept` says what there is.
    """

    same_on_all_ranks = True

    def __init__(self, exit_code: int, checkpoint: Path | None, step: int, kept: str = "") -> None:
        self.exit_code, self.checkpoint, self.step = exit_code, checkpoint, step
        nothing = kept or "nothing was to be saved"
        where = f"saved in {checkpoint}; go on with `--resume auto`" if checkpoint else nothing
        super().__init__(f"stopped by a signal after step {step}; {where}.")


class SignalWatch:
    """Context manager: inside it SIGINT, SIGTERM and SIGUSR1 set `code` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, it
    does nothing. `answer` is what the user is told.
    """

    def __init__(self) -> None:
        self.code = 0
        self.answer = STEP_ANSWER
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in watched()}
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def answering(self, text: str) -> Iterator[None]:
        """Within it the user is told something else."""
        before, self.answer = self.answer, text
        try:
            yield
        finally:
            self.answer = before

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # inherited by a process forked inside; not its run to stop
            return
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = EXIT_CODES.get(signal.Signals(number), DEFAULT_EXIT_CODE)
        name = signal.Signals(number).name
        print(f"\n{name}: {self.answer} (Ctrl-C again stops at once).", file=sys.stderr, flush=True)


def watched() -> list[signal.Signals]:
    """The signals that ask a run to stop (Windows has no SIGUSR1)."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def shielded(batches: Iterable[T]) -> Iterator[T]:
    """The batches, whose loader workers do not see the signals that ask this process to stop.

    torchrun, schedulers and Ctrl-C signal whole process groups. A worker that died of it would fail the step that is
    being finished, so workers start with these signals blocked, which they inherit; they leave when told to or when
    their parent is gone. The first batch is fetched under the shield because loaders start their workers for it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield from batches
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched())
    try:
        iterator = iter(batches)
        first = next(iterator, None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if first is not None:
        yield first
        yield from iterator
