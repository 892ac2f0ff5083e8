"""The contract of data sets: rows by number, randomness from outside."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavis_lite.datasets.annotations.kinds import BETWEEN_NAMES
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.protocols import Located
from lavis_lite.errors import UndefinedMethodError

Sample = dict[str, Any]


class BaseDataset:
    """A map-style data set, as torch's DataLoader takes it, whose samples are functions of (index, rng).

    `sample_keys` names the keys that every sample has. If sets are mixed into one batch, the keys common to all sets
    are kept, so that all processes see the same keys in every batch.

    `shares_pictures` says that rows of one `image_name(index)` have the same picture, and that `sample` accepts what
    `picture(index, rng)` gave as a third argument. Evaluation then reads it once for all of them in a batch.
    """

    sample_keys: tuple[str, ...] = ()

    @property
    def shares_pictures(self) -> bool:
        """Whether several rows may be given one picture; see the class."""
        return False

    def __len__(self) -> int:
        raise UndefinedMethodError.of(self, "__len__")

    def sample(self, index: int, rng: random.Random | None = None) -> Sample:
        """Sample of a row; all randomness comes from `rng`.

        Raises:
            BadSample: its image cannot be used.
        """
        raise UndefinedMethodError.of(self, "sample")

    def evaluation_order(self) -> Sequence[int]:
        """All rows in the order in which batches are best made of them: the same in every process."""
        return range(len(self))

    def location(self, index: int) -> str:
        """`file:row` that a sample comes from, for messages."""
        return f"row {index}" if type(self).place is BaseDataset.place else self.place(index)

    def place(self, index: int) -> str:
        """The name of `location` in version 0.2; data sets that define it keep working."""
        return self.location(index)

    def content_hash(self) -> str | None:
        """Hash of the samples' annotations, without the media files; None: not known.

        A run is resumed on equal content only.
        """
        return None

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)


class TableDataset(BaseDataset):
    """A data set with one sample per row of `table`."""

    table: RowTable
    needs_words = True
    """whether a sample without words after its text processor is a bad sample"""

    def __len__(self) -> int:
        return len(self.table)

    def location(self, index: int) -> str:
        """`file:row` of the annotation."""
        return self.table.location(index)

    def content_hash(self) -> str | None:
        """Hash of all rows, in order."""
        return self.table.content_hash()


def location_of(dataset: object, index: int) -> str:
    """`file:row` of a sample of any map-style data set, for messages."""
    return dataset.location(index) if isinstance(dataset, Located) else f"row {index}"


def image_number(space: str, image: str) -> int:
    """A positive int64 that names an image: equal for equal images in whatever data set, different for others.

    Args:
        space: the image folder as the configuration names it.
        image: the file's name in it.
    """
    digest = hashlib.blake2b(f"{space.removeprefix('./').rstrip('/')}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pictures_of(row: Any) -> list[str]:
    """The pictures, or the video, that a row names; videos in conversations are looked at when they are read."""
    if "media" in row:
        return [name for kind, name in row["media"] if kind == "image"]
    return str(row["image"]).split(BETWEEN_NAMES)


def learned_pictures(training: Sequence[object], held_out: Sequence[object]) -> list[int]:
    """How many pictures of each held-out data set are in a training set, too.

    A picture is known by its folder and its name. Data sets of more than `MOST_ROWS` rows are not looked at.
    """
    own = [set(_named_pictures(dataset)) for dataset in held_out]
    every = set().union(*own)
    learned = {one for dataset in training for one in _named_pictures(dataset) if one in every} if every else every
    return [len(pictures & learned) for pictures in own]


def _named_pictures(dataset: object) -> Iterator[tuple[str, str]]:
    table, folder = getattr(dataset, "table", None), getattr(dataset, "folder", None)
    if isinstance(table, RowTable) and folder is not None and len(table) <= MOST_ROWS:
        root = str((getattr(folder, "images", None) or folder).root)  # kept features have their images' names
        yield from ((root, name) for row in table.skim() for name in pictures_of(row))


# --- texts ------------------------------------------------------------------------------------------------------------
MOST_ROWS = 1_000_000
"""rows of a data set up to which all texts are checked before a run: some seconds"""
SOME_ROWS = 200_000
"""evenly spaced rows that are checked of a larger data set"""
MOST_SHOWN = 20
_SHOWN_CHARACTERS = 80


EMPTY_CELLS = frozenset({"nan", "none", "null", "nat", "n/a", "#n/a", "undefined"})
"""how programs write that a cell is empty, in lower case"""


def is_empty_cell(text: str) -> bool:
    """Whether a caption or a question is only how a program writes an empty cell."""
    return len(text) < 12 and text.strip().lower() in EMPTY_CELLS


def as_it_is(item: Any, rng: Any = None) -> Any:
    """The processor that changes nothing."""
    return item


def has_content(text: str) -> bool:
    """Whether a text has a letter, a digit, or a symbol that is no ASCII mark, such as an emoji."""
    return text[:1].isalnum() or any(map(str.isalnum, text)) or any(  # most begin with one
        not character.isascii() and unicodedata.category(character)[0] not in "PZC" for character in text)


def processed(processor: Callable[..., Any], text: str, rng: Any, kind: str) -> str:
    """The result of a text processor; `kind` (caption or question) is for messages.

    Raises:
        BadSample: nothing is left of the text but punctuation and white space.
    """
    made: str = processor(text, rng)
    if not is_left(processor, made):
        raise BadSample(f"{kind} {text[:_SHOWN_CHARACTERS]!r}", f"has {no_words(processor)}")
    return made


def is_left(processor: Callable[..., Any], made: str) -> bool:
    """Whether a processed text has content besides the prompt that the processor puts before each."""
    return has_content(made.removeprefix(getattr(processor, "prompt", "")))


def is_cut(processor: Callable[..., Any], text: str) -> bool:
    """Whether a text processor leaves the end of a text out."""
    return bool(getattr(processor, "cuts", lambda _: False)(text))


def main_texts(row: Any) -> list[tuple[str, str]]:
    """(caption | question, text) of a row: the texts that a text processor is applied to."""
    if "question" in row:
        return [("question", row["question"])]
    caption = row.get("caption") or []
    return [("caption", text) for text in ([caption] if isinstance(caption, str) else caption) if text]


@dataclass
class TextReport:
    """The effect of text processing on a data set.

    Attributes:
        rows: of the data set. looked_at: how many of them were read. texts: in these.
        empty: texts with nothing left. shown: the first of these, `file:row: text`. cut: texts that lose their end.
        cells: texts that are only how a program writes an empty cell.
        processor: its name. reason: why a text counts as empty.
        left_out: rows of the files that are not used because they lack what the section requires.
    """

    rows: int = 0
    looked_at: int = 0
    texts: int = 0
    empty: int = 0
    cut: int = 0
    cells: int = 0
    left_out: int = 0
    processor: str = ""
    reason: str = ""
    shown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.empty:,} with {self.reason}" if self.empty else "",
                 f"{self.cut:,} cut by {self.processor}" if self.cut else "",
                 f"{self.cells:,} like an empty cell (nan, None, null ...)" if self.cells else ""]
        some = f" (of {self.looked_at:,} of {self.rows:,} rows)" if self.looked_at < self.rows else ""
        lines = [f"{self.texts:,} texts{some}, {', '.join(filter(None, parts))}"] if any(parts) else []
        if self.left_out:
            lines.append(f"rows left out, which lack what `required` names: {self.left_out:,}")
        return "; ".join(lines)


def look_through(dataset: object, most: int = MOST_ROWS, some: int = SOME_ROWS) -> TextReport:
    """Process the texts of a data set's rows; an empty report if it has no table of rows or no text processor.

    Args:
        dataset: with `table`, `text_processor` and `place`.
        most: rows up to which all are read. some: how many are read of more rows, evenly spaced.
    """
    table, processor = getattr(dataset, "table", None), getattr(dataset, "text_processor", None)
    if table is None or processor is None:
        return TextReport()
    looked_at = len(table) if len(table) <= most else some
    report = TextReport(len(table), looked_at, left_out=table.left_out, processor=name_of(processor),
                        reason=no_words(processor))
    plain = processor is as_it_is or getattr(processor, "keeps_words", False)
    cuts = getattr(processor, "cuts", lambda _: False)
    chosen = (number * len(table) // looked_at for number in range(looked_at))
    rows = enumerate(table.skim()) if looked_at == len(table) else ((one, table[one]) for one in chosen)
    for index, row in rows:
        texts = main_texts(row)
        report.texts += len(texts)
        for kind, text in texts:
            cut = cuts(text)
            report.cells += is_empty_cell(text)
            if plain and not cut and has_content(text):
                continue
            report.cut += cut
            if not is_left(processor, processor(text, None)):
                report.empty += 1
                if len(report.shown) < MOST_SHOWN:
                    report.shown.append(f"{location_of(dataset, index)}: {kind} {text[:_SHOWN_CHARACTERS]!r}")
    return report


def no_words(processor: Any) -> str:
    """Why a text that a processor leaves nothing of is bad, for messages."""
    return "no words" if processor is as_it_is else f"no words left after {name_of(processor)}"


def name_of(processor: Any) -> str:
    """A processor's name in messages."""
    return str(getattr(processor, "__name__", type(processor).__name__))
