"""Checks of a data set, split by split: its rows in one pass, the files they name, and some of the files' content."""

from __future__ import annotations

import hashlib
import os
import posixpath
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.caption import DuplicateIds
from lavis_lite.datasets.files.names import LINK, why_absent
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.texts import as_it_is, is_cut, is_left, no_words
from lavis_lite.datasets.validate.contact_sheet import Thumbnail, draw_sheet
from lavis_lite.datasets.validate.report import Problem, Report, SplitReport, Summary
from lavis_lite.errors import ConfigError, DataError

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


def scan(dataset: Any, report: SplitReport, count_tokens: TokenCounter, max_tokens: int) -> Names:
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
    report.add_row_errors(twice.errors)
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

    def __init__(self, dataset: Any, report: SplitReport, count_tokens: TokenCounter) -> None:
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
            self._empty.add(f"{self._dataset.location(number)}: {kind} {text[:80]!r}")
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


def check_media(dataset: Any, names: Names, report: SplitReport, sample: int) -> None:
    """Add missing and unreadable files, and the sizes of those that were opened, to the report.

    Args:
        dataset: with `folder` (an ImageFolder, the images of shards, or a VideoFolder) and `place`.
        names: what the rows name.
        report: of the split.
        sample: how many files are decoded.
    """
    missing, outside = report.problem("missing files"), report.problem("files outside of their folder")
    bad = set()
    for name, reason in refused(dataset.folder, names.first_row):
        bad.add(name)
        outside.add(f"{_place(dataset, names, name)} {reason}")
    for name in absent(dataset.folder, [name for name in names.first_row if name not in bad]):
        bad.add(name)
        missing.add(f"{_place(dataset, names, name)} {_shown(name)} {_why_absent(dataset.folder, name)}")
    here = Names({name: row for name, row in names.first_row.items() if name not in bad})
    _open_some(dataset, here, report, sample)


def _place(dataset: Any, names: Names, name: str) -> str:
    return f"{dataset.location(names.first_row[name])}: field {dataset.folder.key!r}:"


def _shown(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def refused(folder: Any, names: Sequence[str] | Any) -> Iterator[tuple[str, str]]:
    """(name, why) of names that lead out of the folder by their spelling; symbolic links show when files are opened."""
    if _in_shards(folder):
        return
    for name in names:
        if posixpath.isabs(name) or ".." in name:
            try:
                folder.path(name)
            except BadSample as error:
                yield name, f"{_shown(name)} {error.reason}"


def _why_absent(folder: Any, name: str) -> str:
    why = "" if _in_shards(folder) else why_absent(Path(folder.root) / name)
    return why.removeprefix("it ") if why.startswith(LINK) else f"is not in {folder.root}{'; ' if why else ''}{why}"


def absent(folder: Any, names: Sequence[str]) -> Iterator[str]:
    """Names without a file."""
    if _in_shards(folder):
        yield from (name for name in names if folder.index.find(name) is None)
        return
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)
    for parent, members in by_folder.items():
        present = _listing(Path(folder.root) / parent)
        yield from (name for name in members if os.path.basename(name) not in present)


def _in_shards(folder: Any) -> bool:
    return hasattr(getattr(folder, "index", None), "find")


def _listing(folder: Path) -> frozenset[str]:
    """Names in a folder of what is there; none if there is no such folder or it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path))
    except (OSError, ValueError):
        return frozenset()


def _open_some(dataset: Any, names: Names, report: SplitReport, sample: int) -> None:
    broken = report.problem("files that cannot be used")
    sizes: dict[str, list[float]] = defaultdict(list)
    for name in names.spread(sample):
        try:
            width, height, frames = size_of(dataset.folder, name)
        except BadSample as error:
            broken.add(f"{_place(dataset, names, name)} {_shown(error.path)} {error.reason}")
            continue
        report.opened += 1
        sizes["width"].append(width)
        sizes["height"].append(height)
        sizes["aspect"].append(round(width / height, 3))
        if frames is not None:
            sizes["frames"].append(frames)
    report.sizes = {what: summary for what, values in sizes.items() if (summary := Summary.of(values))}


def size_of(folder: Any, name: str) -> tuple[int, int, int | None]:
    """(width, height, frames of a video) of a file, which is decoded: a video's first frame.

    Raises:
        BadSample: it cannot be used.
    """
    if folder.key != "video":
        image = folder.load(name)
        return image.width, image.height, None
    with folder.load(name) as video:
        (frame,) = video.frames([0])
        return frame.shape[1], frame.shape[0], len(video)


@dataclass(frozen=True)
class CheckOptions:
    """How much is looked at.

    Attributes:
        images: files of a split that are decoded; all rows are read whatever it is.
        count_tokens: the Q-Former's tokenizer. max_tokens: what the Q-Former reads of a text.
        sheet: where a contact sheet goes. samples: of each split on it.
    """

    count_tokens: TokenCounter
    tokenizer: str = "mini"
    max_tokens: int = 32
    images: int = 1000
    sheet: Path | None = None
    samples: int = 12


def examine(name: str, builder: BaseDatasetBuilder, how: CheckOptions, splits: Sequence[str] | None = None,
            notes: Sequence[str] = (), training: Sequence[str] | None = None) -> Report:
    """Look through the splits of a data set.

    Args:
        name: what the report calls it.
        builder: of the data set; faulty annotations are reported in the words in which it raises them.
        how: see `CheckOptions`.
        splits: those to look at; by default all.
        notes: what the report shall say besides.
        training: splits that are looked at as training sees them; by default those whose names begin with "train".

    Raises:
        ConfigError: there is no such split, or the section itself is wrong.
        OSError: the sheet could not be written.
    """
    report = Report(name, getattr(builder, "media", "images"), how.tokenizer, how.max_tokens, list(notes))
    known = builder.splits()
    for split in splits or known:
        if split not in known:
            raise ConfigError(f"{name} has no split {split!r}; it has {', '.join(known) or 'none'}.")
    shown: list[Thumbnail] = []
    for split in splits or known:
        found = SplitReport(split)
        report.splits.append(found)
        trained = split.startswith("train") if training is None else split in training
        shown += _examine_split(builder, found, how, trained)
        found.tidy()
    if how.sheet is not None:
        how.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(shown).save(how.sheet)
    return report


def _examine_split(builder: BaseDatasetBuilder, report: SplitReport, how: CheckOptions,
                   training: bool) -> list[Thumbnail]:
    missing = builder.missing_files([report.split])
    if missing:
        report.problems += [Problem(sentence, 1) for sentence in missing]
        return []
    try:
        dataset = builder.build(report.split, training)
    except DataError as error:
        report.problems.append(Problem(str(error), 1))
        return []
    if not (hasattr(dataset, "table") and hasattr(dataset, "folder")):
        raise ConfigError(f"data sets of {type(builder).__name__} have no table of rows and folder of files, so that "
                          "they cannot be looked through.")
    names = scan(dataset, report, how.count_tokens, how.max_tokens)
    check_media(dataset, names, report, how.images)
    return [] if how.sheet is None else [_thumbnail(dataset, names.first_row[name], report.split)
                                         for name in names.spread(how.samples)]


def _thumbnail(dataset: Any, number: int, split: str) -> Thumbnail:
    row = dataset.table[number]
    text = "; ".join(f"{'' if kind == 'caption' else kind[0].upper() + ': '}{words}" for kind, words in texts_of(row))
    folder = dataset.folder
    try:
        picture = folder.preview(row["image"]) if folder.key == "video" else folder.load(row["image"])
        return Thumbnail(f"{split} {number}", picture, text)
    except BadSample as error:
        return Thumbnail(f"{split} {number}", None, f"{error.path}: {error.reason}")
