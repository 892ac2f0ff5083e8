"""All rows of a split in one pass: what they name, what they say, and ids that contradict each other."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavis_lite.datasets.caption import DuplicateIds
from lavis_lite.datasets.doctor.report import SplitReport, Summary
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.datasets.texts import as_it_is, is_cut, is_left, no_words

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""texts -> tokens of each"""
_TOGETHER = 4096
"""texts that are tokenised at once"""


@dataclass
class Names:
    """The different files that rows name, in order of appearance, each with the first row that does."""

    first_row: dict[str, int] = field(default_factory=dict)

    def spread(self, count: int) -> list[str]:
        """`count` of the names, evenly spread over all of them (all where there are no more)."""
        names = list(self.first_row)
        step = max(len(names) / count, 1) if count else len(names) + 1
        return [names[int(place * step)] for place in range(min(count, len(names)))]


def scan(dataset: ImageTable, report: SplitReport, count_tokens: TokenCounter, max_tokens: int) -> Names:
    """Read every row of a data set once; counts and problems go into the report.

    Args:
        dataset: with `table` (rows with image, and caption or question and answers), `text_processor` and `place`.
        report: of the split.
        count_tokens: the Q-Former's tokenizer.
        max_tokens: what the Q-Former reads of a text.
    """
    names, texts, twice = Names(), _Texts(dataset, report, count_tokens), DuplicateIds()
    seen: set[bytes] = set()
    for number in range(len(dataset.table)):
        row = dataset.table[number]
        name = row["image"]
        names.first_row.setdefault(name, number)
        twice.add(row, number, dataset)
        said = list(texts_of(row))
        texts.add(number, row, said)
        digest = hashlib.blake2b(repr((name, said)).encode("utf-8", "backslashreplace"), digest_size=8).digest()
        report.repeated += digest in seen
        seen.add(digest)
    report.faulty_rows(twice.faults)
    report.rows, report.images, report.left_out = len(dataset.table), len(names.first_row), dataset.table.left_out
    texts.finish(max_tokens)
    return names


def texts_of(row: Any) -> Iterator[tuple[str, str]]:
    """(caption | question | answer, text) of a row."""
    caption = row.get("caption")
    for text in [caption] if isinstance(caption, str) else caption or []:
        if text:
            yield "caption", text
    if "question" in row:
        yield "question", row["question"]
    for answer in row.get("answers", []):
        yield "answer", answer


class _Texts:
    """The texts of a data set as its text processor leaves them: as training sees them."""

    def __init__(self, dataset: ImageTable, report: SplitReport, count_tokens: TokenCounter) -> None:
        self._dataset, self._report, self._lengths = dataset, report, _Lengths(count_tokens)
        self._processor = getattr(dataset, "text_processor", as_it_is)
        self._empty = report.problem(f"texts with {no_words(self._processor)}")

    def add(self, number: int, row: Any, said: Sequence[tuple[str, str]]) -> None:
        """The texts of one more row."""
        main = "question" if "question" in row else "caption"
        for kind, text in said:
            self._lengths.add(kind, self._processed(number, kind, text) if kind == main else text)

    def _processed(self, number: int, kind: str, text: str) -> str:
        made: str = self._processor(text, None)
        self._report.cut += is_cut(self._processor, text)
        if not is_left(self._processor, made):
            self._empty.add(f"{self._dataset.place(number)}: {kind} {text[:80]!r}")
        return made

    def finish(self, max_tokens: int) -> None:
        """Put the counts into the report."""
        for kind, counts in self._lengths.finish().items():
            summary = Summary.of(counts)
            if summary:
                self._report.texts[kind], self._report.tokens[kind] = summary.count, summary
                self._report.over[kind] = sum(count > max_tokens for count in counts)


class _Lengths:
    """Tokens of texts by their kind, counted many at a time."""

    def __init__(self, count_tokens: TokenCounter) -> None:
        self._count = count_tokens
        self._waiting: dict[str, list[str]] = {}
        self._counts: dict[str, array[int]] = {}

    def add(self, kind: str, text: str) -> None:
        """One more text."""
        waiting = self._waiting.setdefault(kind, [])
        waiting.append(text)
        if len(waiting) >= _TOGETHER:
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        waiting = self._waiting[kind]
        self._counts.setdefault(kind, array("i")).extend(self._count(waiting) if waiting else [])
        waiting.clear()

    def finish(self) -> dict[str, array[int]]:
        """Tokens of every text, by kind."""
        for kind in self._waiting:
            self._flush(kind)
        return self._counts
