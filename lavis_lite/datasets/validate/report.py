"""The report of `data check`: as text, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lavis_lite.datasets.annotations.rows import RowErrors
from lavis_lite.errors import DataError, counted

MOST_LINES = 20
"""rows of a problem that are listed; the others are counted"""


@dataclass(frozen=True)
class Summary:
    """The spread of some numbers: smallest, median, mean, 95th percentile, largest."""

    count: int
    min: float
    median: float
    mean: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float] | Any) -> Summary | None:
        """None if there are no values."""
        numbers = np.asarray(values, np.float64)
        if not len(numbers):
            return None
        return cls(len(numbers), float(numbers.min()), float(np.median(numbers)), round(float(numbers.mean()), 2),
                   float(np.percentile(numbers, 95)), float(numbers.max()))

    def __str__(self) -> str:
        return (f"{self.min:g} - {self.max:g}, median {self.median:g}, mean {self.mean:.1f}, "
                f"95% up to {self.p95:g}")


@dataclass
class Problem:
    """Something wrong with some rows: what, how often, and the first of them as `file:row: reason`."""

    what: str
    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """One more row."""
        self.count += 1
        if len(self.lines) < MOST_LINES:
            self.lines.append(line)

    def __str__(self) -> str:
        if not self.lines:
            return self.what
        more = [f"and {self.count - len(self.lines)} more"] if self.count > len(self.lines) else []
        return "\n".join([f"{self.what}: {self.count}", *(f"  {line}" for line in [*self.lines, *more])])


@dataclass
class SplitReport:
    """One split.

    Attributes:
        rows: of the annotations as training or evaluation reads them (training: one per caption).
        images: different images (videos) in them. opened: how many of these were decoded.
        texts: kind of text -> their number. tokens: kind -> tokens of a text, the two special ones included.
        over: kind of text -> texts with more tokens than the Q-Former reads.
        sizes: width, height, aspect (width / height), and frames for videos, of those that were opened.
        repeated: rows with the image and text of an earlier row, which is not an error.
        learned: images of an evaluation split that a training split has too, which is not an error.
        cut: texts that the text processor shortens. cells: texts that are only how a program writes an empty cell.
        left_out: rows that lack what the section requires.
    """

    split: str
    rows: int = 0
    images: int = 0
    opened: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, Summary] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, Summary] = field(default_factory=dict)
    repeated: int = 0
    learned: int = 0
    cut: int = 0
    cells: int = 0
    left_out: int = 0
    problems: list[Problem] = field(default_factory=list)

    def problem(self, what: str) -> Problem:
        """A new problem, to which rows are added."""
        self.problems.append(Problem(what))
        return self.problems[-1]

    def add_row_errors(self, errors: RowErrors) -> None:
        """A problem with the message of the error that a run would raise."""
        try:
            errors.stop_if_any()
        except DataError as error:
            self.problems.append(Problem(str(error), errors.count))

    def drop_empty_problems(self) -> None:
        """Drop problems that no row has."""
        self.problems = [problem for problem in self.problems if problem.count]


@dataclass
class Report:
    """A data set.

    Attributes:
        name: of the data set. media: images or videos. max_tokens: what the Q-Former reads of a text.
        notes: assumptions, such as guessed columns.
    """

    name: str
    media: str = "images"
    tokenizer: str = ""
    max_tokens: int = 32
    notes: list[str] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(split.problems for split in self.splits)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"healthy": self.healthy, **asdict(self)}

    def __str__(self) -> str:
        lines = [self.name, *(f"  {note}" for note in self.notes)]
        for split in self.splits:
            lines += [f"{split.split}:", *(f"  {line}" for line in self._split_lines(split))]
        wrong = sum(len(split.problems) for split in self.splits)
        lines.append(f"{counted(wrong, 'problem')}, see above." if wrong else "nothing is wrong.")
        return "\n".join(lines)

    def _split_lines(self, split: SplitReport) -> list[str]:
        lines = [f"{counted(split.rows, 'row')}, {counted(split.images, self.media[:-1])}"] if split.rows else []
        for kind, count in split.texts.items():
            lines.append(counted(count, kind))
        for kind, summary in split.tokens.items():
            over = f"; more than {self.max_tokens}: {split.over[kind]}" if split.over[kind] else ""
            lines.append(f"tokens per {kind} ({self.tokenizer}): {summary}{over}")
        if split.opened:
            lines.append(f"{counted(split.opened, self.media[:-1])} opened")
        lines += [f"{what}: {summary}" for what, summary in split.sizes.items()]
        if split.cut:
            lines.append(f"texts cut by the text processor: {split.cut}")
        if split.left_out:
            lines.append(f"rows left out, which lack what `required` names: {split.left_out}")
        if split.cells:
            lines.append(f"captions or questions like an empty cell (nan, None, null ...): {split.cells}")
        if split.repeated:
            lines.append(f"rows that repeat an earlier one (same file, same text): {split.repeated}")
        if split.learned:
            lines.append(f"{self.media} that a training split has too, so that scores are no test of new ones: "
                         f"{split.learned}")
        for problem in split.problems:
            lines += [f"{'PROBLEM: ' if not number else ''}{line}" for number, line in
                      enumerate(str(problem).splitlines())]
        return lines
