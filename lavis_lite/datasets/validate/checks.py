"""Checks of a data set, split by split: its rows in one pass, the files they name, and the content of some files.

Whether a file is there is looked up in listings of the folders (one call per folder instead of one per file). Decoding
is slow, so only a sample of the files is decoded.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_lite.datasets.base import is_cut, is_empty_cell, is_left, main_texts, no_words, pictures_of, unchanged
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.caption import DuplicateIds
from lavis_lite.datasets.files.image_paths import LINK, missing_files, why_absent
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.media.video import VideoFolder
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.datasets.shards.dataset import ShardImages
from lavis_lite.datasets.validate.contact_sheet import Thumbnail, draw_sheet
from lavis_lite.datasets.validate.report import Problem, Report, SplitReport, Summary
from lavis_lite.errors import ConfigError, DataError

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""texts -> tokens of each"""
_TOGETHER = 4096
"""texts that are tokenised at once"""


@dataclass(frozen=True)
class CheckOptions:
    """How much is checked.

    Attributes:
        images: files of a split that are decoded; all rows are read in any case.
        count_tokens: the Q-Former's tokenizer. max_tokens: what the Q-Former reads of a text.
        sheet: file of a contact sheet. samples: of each split on it.
    """

    count_tokens: TokenCounter
    tokenizer: str = "mini"
    max_tokens: int = 32
    images: int = 1000
    sheet: Path | None = None
    samples: int = 12


def examine(name: str, builder: BaseDatasetBuilder, how: CheckOptions, splits: Sequence[str] | None = None,
            notes: Sequence[str] = (), training: Sequence[str] | None = None) -> Report:
    """Check the splits of a data set.

    Args:
        name: for the report.
        builder: of the data set; the report has its errors about annotations as they are.
        how: see `CheckOptions`.
        splits: those to check; by default all.
        notes: further lines of the report.
        training: splits that are checked as training reads them; by default those whose names begin with "train".

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
    trained = [split for split in splits or known
               if (split.startswith("train") if training is None else split in training)]
    named: dict[str, set[tuple[str, str]]] = {}
    for split in splits or known:
        found = SplitReport(split)
        report.splits.append(found)
        shown += _examine_split(builder, found, how, split in trained, named)
        found.drop_empty_problems()
    learned = set().union(*(named.get(split, set()) for split in trained))
    for found in report.splits:
        found.learned = 0 if found.split in trained else len(named.get(found.split, set()) & learned)
    if how.sheet is not None:
        how.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(shown).save(how.sheet)
    return report


def _examine_split(builder: BaseDatasetBuilder, report: SplitReport, how: CheckOptions, training: bool,
                   named: dict[str, set[tuple[str, str]]]) -> list[Thumbnail]:
    """Pictures for the sheet; the split's files, each (folder, name), are put into `named`."""
    missing = builder.missing_files([report.split])
    if missing:
        report.problems += [Problem(sentence, 1) for sentence in missing]
        return []
    try:
        dataset = builder.build(report.split, training)
    except DataError as error:
        report.problems.append(Problem(str(error), 1))
        return []
    if not isinstance(dataset, ImageTable):
        raise ConfigError(f"data sets of {type(builder).__name__} have no table of rows and folder of files, so that "
                          "they cannot be checked.")
    names = scan(dataset, report, how.count_tokens, how.max_tokens)
    check_media(dataset, names, report, how.images)
    named[report.split] = set(zip(itertools.repeat(str(dataset.folder.root)), names.first_row, strict=False))
    return [] if how.sheet is None else [_thumbnail(dataset, names.first_row[name], report.split)
                                         for name in names.spread(how.samples)]


def _thumbnail(dataset: ImageTable, number: int, split: str) -> Thumbnail:
    row, folder = dataset.table[number], dataset.folder
    text = "; ".join(f"{'' if kind == 'caption' else kind[0].upper() + ': '}{words}" for kind, words in _texts_of(row))
    try:
        name = next(iter(pictures_of(row)))
        picture = folder.preview(name) if isinstance(folder, VideoFolder) else folder.load(name)
        return Thumbnail(f"{split} {number}", picture, text)
    except BadSample as error:
        return Thumbnail(f"{split} {number}", None, f"{error.path}: {error.reason}")


# --- rows ------------------------------------------------------------------------------------------------------------
@dataclass
class Names:
    """The different files that rows name, in order of appearance, each with its first row."""

    first_row: dict[str, int] = field(default_factory=dict)

    def spread(self, count: int) -> list[str]:
        """`count` of the names, or all if they are fewer, evenly spread."""
        names = list(self.first_row)
        step = max(len(names) / count, 1) if count else len(names) + 1
        return [names[int(index * step)] for index in range(min(count, len(names)))]


def scan(dataset: ImageTable, report: SplitReport, count_tokens: TokenCounter, max_tokens: int) -> Names:
    """Read every row of a data set once; counts and problems go into the report.

    Args:
        dataset: with `table` (rows with image, and caption or question and answers), `text_processor` and `location`.
        report: of the split.
        count_tokens: the Q-Former's tokenizer.
        max_tokens: what the Q-Former reads of a text.
    """
    names, texts, twice = Names(), _Texts(dataset, report, count_tokens), DuplicateIds()
    seen: set[bytes] = set()
    for number in range(len(dataset.table)):
        row = dataset.table[number]
        files = pictures_of(row)
        for name in files:
            names.first_row.setdefault(name, number)
        twice.add(row, number, dataset)
        found = list(_texts_of(row))
        texts.add(number, found)
        digest = hashlib.blake2b(repr((files, found)).encode("utf-8", "backslashreplace"), digest_size=8).digest()
        report.repeated += digest in seen
        seen.add(digest)
    report.add_row_errors(twice.errors)
    report.rows, report.images, report.left_out = len(dataset.table), len(names.first_row), dataset.table.left_out
    texts.finish(max_tokens)
    return names


def _texts_of(row: Any) -> Iterator[tuple[str, str]]:
    """(caption | question | answer | role, text) of a row."""
    for role, _, parts in row.get("turns", []):
        yield role, " ".join(part for part in parts if isinstance(part, str))
    yield from main_texts({"caption": row.get("caption")})
    if "question" in row:
        yield "question", row["question"]
    for answer in row.get("answers", []):
        yield "answer", answer


class _Texts:
    """The texts of a data set as its text processor leaves them, and their tokens, counted many at a time."""

    def __init__(self, dataset: ImageTable, report: SplitReport, count_tokens: TokenCounter) -> None:
        self._dataset, self._report, self._count_tokens = dataset, report, count_tokens
        self._processor = getattr(dataset, "text_processor", unchanged)
        self._empty = report.problem(f"texts with {no_words(self._processor)}")
        self._waiting: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, array[int]] = defaultdict(lambda: array("i"))

    def add(self, number: int, found: Sequence[tuple[str, str]]) -> None:
        """The texts of one more row; only its question, or else its captions, are processed."""
        main = "question" if any(kind == "question" for kind, _ in found) else "caption"  # turns stay as written
        for kind, text in found:
            made = text
            if kind == main:
                made = self._processor(text, None)
                self._report.cut += is_cut(self._processor, text)
                self._report.cells += is_empty_cell(text)
                if not is_left(self._processor, made):
                    self._empty.add(f"{self._dataset.location(number)}: {kind} {text[:80]!r}")
            self._waiting[kind].append(made)
            if len(self._waiting[kind]) >= _TOGETHER:
                self._count(kind)

    def _count(self, kind: str) -> None:
        waiting = self._waiting[kind]
        self._counts[kind].extend(self._count_tokens(waiting) if waiting else [])
        waiting.clear()

    def finish(self, max_tokens: int) -> None:
        """Put the counts into the report."""
        for kind in self._waiting:
            self._count(kind)
        for kind, counts in self._counts.items():
            summary = Summary.of(counts)
            if summary:
                self._report.texts[kind], self._report.tokens[kind] = summary.count, summary
                self._report.over[kind] = sum(count > max_tokens for count in counts)


# --- files -----------------------------------------------------------------------------------------------------------
def check_media(dataset: ImageTable, names: Names, report: SplitReport, sample: int) -> None:
    """Add missing and unreadable files, and the sizes of those that were opened, to the report.

    Args:
        dataset: with `folder` (an ImageFolder, the images of shards, or a VideoFolder) and `location`.
        names: the files that rows name.
        report: of the split.
        sample: how many files are decoded.
    """
    missing, outside = report.problem("missing files"), report.problem("files outside of their folder")
    folder, bad = dataset.folder, set()

    def where(name: str) -> str:
        return f"{dataset.location(names.first_row[name])}: field {folder.key!r}:"

    for name, reason in _refused(folder, names.first_row):
        bad.add(name)
        outside.add(f"{where(name)} {reason}")
    for name in absent(folder, [name for name in names.first_row if name not in bad]):
        bad.add(name)
        why = "" if isinstance(folder, ShardImages) else why_absent(Path(folder.root) / name)
        why = (why.removeprefix("it ") if why.startswith(LINK) else
               f"is not in {folder.root}{'; ' if why else ''}{why}")
        missing.add(f"{where(name)} {_shortened(name)} {why}")
    here = Names({name: row for name, row in names.first_row.items() if name not in bad})
    broken = report.problem("files that cannot be used")
    sizes: dict[str, list[float]] = defaultdict(list)
    for name in here.spread(sample):
        try:
            width, height, frames = _size_of(folder, name)
        except BadSample as error:
            broken.add(f"{where(name)} {_shortened(error.path)} {error.reason}")
            continue
        report.opened += 1
        for what, value in (("width", width), ("height", height), ("aspect", round(width / height, 3))):
            sizes[what].append(value)
        if frames is not None:
            sizes["frames"].append(frames)
    report.sizes = {what: summary for what, values in sizes.items() if (summary := Summary.of(values))}


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def _refused(folder: ImageFolder, names: Sequence[str] | Any) -> Iterator[tuple[str, str]]:
    """(name, why) of names that lead out of the folder by their spelling; symbolic links show when files are opened."""
    for name in () if isinstance(folder, ShardImages) else names:
        if posixpath.isabs(name) or ".." in name:
            try:
                folder.path(name)
            except BadSample as error:
                yield name, f"{_shortened(name)} {error.reason}"


def absent(folder: ImageFolder, names: Sequence[str]) -> Iterator[str]:
    """Names without a file."""
    if isinstance(folder, ShardImages):
        yield from (name for name in names if folder.index.find(name) is None)
        return
    yield from missing_files(folder.root, names)


def _size_of(folder: ImageFolder, name: str) -> tuple[int, int, int | None]:
    """(width, height, frames of a video) of a file, which is decoded (of a video the first frame)."""
    if folder.key != "video":
        image = folder.load(name)
        return image.width, image.height, None
    reader: Any = folder.load(name)
    with reader as video:
        (frame,) = video.frames([0])
        return frame.shape[1], frame.shape[0], len(video)
