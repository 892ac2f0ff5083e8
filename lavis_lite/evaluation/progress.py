"""What lies on the desk while one data set is evaluated: its journal, its bar, and the wish to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from lavis_lite import distributed
from lavis_lite.evaluation.journal import Finished, Journal, is_plain
from lavis_lite.tasks.base import LongWork, Row
from lavis_lite.tracking.tracker import Tracker


class EvaluationStopped(Exception):
    """A signal came while a split was being evaluated; all ranks have left the evaluation together.

    Attributes:
        exit_code: to leave with.
        kept: what is kept of it and where; "": nothing.
    """

    def __init__(self, exit_code: int, kept: str = "") -> None:
        self.exit_code, self.kept = exit_code, kept
        super().__init__(f"evaluation stopped by a signal (exit code {exit_code})")


class Desk(LongWork):
    """Takes note of what is finished, shows it, and knows what was finished before.

    Args:
        journal: of this evaluation and rank; None: nothing is kept.
        resume: whether to go on from what journals hold.
        tracker: shows the bars.
        title: of the bars, `<split> <data set>`.
        wish: exit code of a pending signal, 0 while there is none.

    Attributes:
        finished: what was done before; the rows are on rank 0 only, where the files were read.
        done: numbers of the finished batches, on all ranks.
    """

    def __init__(self, journal: Journal | None, resume: bool, tracker: Tracker, title: str,
                 wish: Callable[[], int]) -> None:
        self.journal, self.tracker, self.title, self.wish_of_runner = journal, tracker, title, wish
        self.finished = self._take_up(resume)
        self.done = frozenset(distributed.broadcast_object(list(self.finished.batches)))
        self.parts: dict[str, Any] = distributed.broadcast_object(self.finished.parts)
        if not distributed.broadcast_object(self.finished.ours):
            self.journal = None
        self._total = self._before = self._own = 0
        self._showing = False

    def _take_up(self, resume: bool) -> Finished:
        if self.journal is None or not distributed.is_main():
            return Finished()
        if not resume:
            self.journal.remove()
            return Finished()
        finished, told = self.journal.take_up()
        for line in told:
            self.tracker.say(line)
        return finished

    # --- rows -----------------------------------------------------------------------------------------------------
    def keep_batch(self, number: int, rows: list[Row], bad: list[Any], samples: int) -> None:
        """A batch is finished. Rows that JSON does not give back as they were are not kept."""
        if self.journal is not None and is_plain(rows):
            self._append({"batch": number, "rows": rows, "samples": samples, "bad": bad})

    def told_before(self, samples: int, total: int) -> None:
        """Say what was there already."""
        if samples:
            self.tracker.say(f"{self.title}: {samples:,} of {total:,} samples were finished before")

    def _append(self, entry: dict[str, Any]) -> None:
        if self.journal is not None and (trouble := self.journal.append(entry)):
            self.tracker.say(trouble)

    # --- what tasks see -------------------------------------------------------------------------------------------
    def begin(self, title: str, total: int, unit: str) -> None:
        """A bar for all ranks' units, which are taken to be as many as this rank's each."""
        self.show(f"{self.title} {title}", total * distributed.world_size(), 0, unit)

    def show(self, title: str, total: int, before: int, unit: str) -> None:
        """A bar of `total` units of all ranks, `before` of them done already."""
        self.hide()
        self._total, self._before, self._own, self._showing = total, before, 0, True
        self.tracker.begin(title, total, before, unit)

    def advance(self, count: int = 1) -> None:
        """Move the bar, by as much as all ranks do while this one does `count`."""
        self._own += count
        self.tracker.proceed(min(self._before + self._own * distributed.world_size(), self._total))

    def hide(self) -> None:
        """End the bar, if there is one."""
        if self._showing:
            self.tracker.end()
            self._showing = False

    def get(self, key: str) -> Any:
        """A part of the scoring that was finished before."""
        return self.parts.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a part of the scoring."""
        self._append({"key": key, "value": value})

    def wish(self) -> int:
        """Exit code of a pending signal."""
        return self.wish_of_runner()

    def agreed(self) -> int:
        """The wish of any rank. Collective."""
        return max(distributed.all_gather_object(self.wish()))

    def stop(self, code: int) -> NoReturn:
        """Leave; what is finished is kept."""
        written = [] if self.journal is None else self.journal.paths()
        kept = f"what is finished is kept in {written[0].parent}" if written else ""
        raise EvaluationStopped(code, kept)

    def leave(self) -> None:
        """Nothing more will be written; the files stay."""
        self.hide()
        if self.journal is not None:
            self.journal.close()
