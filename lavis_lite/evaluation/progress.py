"""The progress of one data set's evaluation: what is finished, the bar, and whether a signal asks to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lavis_lite import distributed
from lavis_lite.evaluation.resume import CompletedBatches, EvalCheckpoint, is_plain
from lavis_lite.tasks.base import ProgressHandle, Row
from lavis_lite.tracking.tracker import Tracker


class EvaluationStopped(Exception):
    """A signal stopped the evaluation of a split; all ranks have left it together.

    Attributes:
        exit_code: of the process.
        kept: which finished work is on the disk, as a clause; "": none.
    """

    def __init__(self, exit_code: int, kept: str = "") -> None:
        self.exit_code, self.kept = exit_code, kept
        super().__init__(f"evaluation stopped by a signal (exit code {exit_code})")


class EvalProgress(ProgressHandle):
    """Saves what is finished, shows it, and knows what an earlier try finished. Made by all ranks together.

    Args:
        checkpoint: the file of this evaluation and rank.
        resume: whether to load what an earlier try finished; else it is removed.
        tracker: shows the bars.
        title: of the bars, `<split> <data set>`.
        stop_code: returns the exit code of a pending signal; 0: no signal.

    Attributes:
        completed: finished batches by number; their rows are on rank 0 only, which reads the files.
        done: numbers of the finished batches, on all ranks.
        writable: false if another process runs the same evaluation, or its files cannot be read; nothing is saved then.
    """

    def __init__(self, checkpoint: EvalCheckpoint, resume: bool, tracker: Tracker, title: str,
                 stop_code: Callable[[], int]) -> None:
        self.checkpoint, self.tracker, self.title, self._stop_code = checkpoint, tracker, title, stop_code
        self.writable = True
        earlier = self._load(resume) if distributed.is_main() else CompletedBatches()
        self.completed = earlier.batches
        done, self._parts, self.writable = distributed.broadcast_object(
            (list(earlier.batches), earlier.parts, self.writable))
        self.done = frozenset(done)
        self._bar: tuple[int, int] | None = None
        self._own = 0

    def _load(self, resume: bool) -> CompletedBatches:
        if not resume:
            self.checkpoint.remove()
            return CompletedBatches()
        try:
            completed, messages = self.checkpoint.load()
        except OSError as error:
            self.writable = False
            completed, messages = CompletedBatches(), [
                f"{error.filename or self.checkpoint.folder}: {error.strerror}; this evaluation begins from the start "
                "and saves no finished batches"]
        for message in messages:
            self.tracker.log(message)
        return completed

    # --- finished work --------------------------------------------------------------------------------------------
    def save_batch(self, number: int, rows: list[Row], bad: list[Any], samples: int) -> None:
        """Save a finished batch, unless JSON would change its rows."""
        if is_plain(rows):
            self._append({"batch": number, "rows": rows, "samples": samples, "bad": bad})

    def load(self, key: str) -> Any:
        """A part of the scoring that an earlier try finished; None: it is not there."""
        return self._parts.get(key)

    def save(self, key: str, value: Any) -> None:
        """Save a finished part of the scoring."""
        self._append({"key": key, "value": value})

    def _append(self, entry: dict[str, Any]) -> None:
        if self.writable and (problem := self.checkpoint.append(entry)):
            self.tracker.log(problem)

    # --- the bar --------------------------------------------------------------------------------------------------
    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Show a bar of `total` units of all ranks, `done` of them finished earlier."""
        self.end()
        self._bar, self._own = (total, done), 0
        self.tracker.begin(f"{self.title} {title}".rstrip(), total, done, unit)

    def advance(self, count: int = 1) -> None:
        """Move the bar as far as all ranks get while this one finishes `count` units."""
        if self._bar is not None:
            total, done = self._bar
            self._own += count
            self.tracker.proceed(min(done + self._own * distributed.world_size(), total))

    def end(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self.tracker.end()
            self._bar = None

    # --- leaving --------------------------------------------------------------------------------------------------
    def stop_requested(self) -> int:
        """Exit code of a pending signal on this rank; 0: none."""
        return self._stop_code()

    def stop_if_requested(self) -> None:
        """Leave the evaluation if a signal asked any rank to stop. Collective.

        Raises:
            EvaluationStopped: on all ranks.
        """
        if code := max(distributed.all_gather_object(self.stop_requested())):
            written = self.checkpoint.paths() if self.writable else []
            raise EvaluationStopped(code, f"what is finished is kept in {written[0].parent}" if written else "")

    def close(self) -> None:
        """Remove the bar and close the file, which stays on the disk."""
        self.end()
        self.checkpoint.close()
