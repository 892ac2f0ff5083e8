"""Files of questions and answers, in whatever published layout -> one table of checked rows.

The files of a split are read together: official VQA questions and annotations are joined by question_id, COCO files
bring the names of images, flat lists (LAVIS' own) are complete in themselves. Whole files are never held as objects.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations import (
    MOST_CHARACTERS,
    Field,
    Row,
    RowFaults,
    RowTable,
    checked_row,
    describe,
    file_name,
    identifier,
    no_row,
    text,
)
from lavis_lite.datasets.readers import read_members
from lavis_lite.errors import ConfigError, DataError, did_you_mean

COLUMNS = {"question": "question", "answers": "answers", "answer": "answer", "question_id": "question_id",
           "image_id": "image_id", "image": "image", "question_type": "question_type", "answer_type": "answer_type"}
"""what a row may have -> its usual name in a file"""
ROWS = ("", "questions", "data")
"""members of a JSON object that hold questions; "" is a file of rows"""


@dataclass(frozen=True)
class Layout:
    """How a data set writes its rows.

    Args:
        columns: key of COLUMNS -> name in the file, where it differs; answers may be several columns.
        image_pattern: the image's path out of a row's columns and the file's own facts, such as
            "{data_subtype}/COCO_{data_subtype}_{image_id:012d}.jpg".
        key_column: files that are an object of rows by name: that name becomes this column.
        split: fills {split} of the pattern.
        keep: looks at a raw row; rows it refuses are left out, unchecked.
    """

    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    image_pattern: str | None = None
    key_column: str | None = None
    split: str = ""
    keep: Callable[[Row], bool] | None = None

    def __post_init__(self) -> None:
        for key in self.columns:
            if key not in COLUMNS:
                raise ConfigError(f"columns.{key}: no such column; {did_you_mean(key, COLUMNS)}")
            if not self.columns[key] or (key != "answers" and not isinstance(self.columns[key], str)):
                raise ConfigError(f"columns.{key} must be one name; only answers may be in several columns.")
        for name in self.pattern_fields():
            if not name.isidentifier():
                raise ConfigError(f"image_pattern {self.image_pattern!r}: {{{name}}} must be the name of a column.")

    def name(self, key: str) -> str:
        """What a column is called in the file; the first of several."""
        named = self.columns.get(key, COLUMNS[key])
        return named if isinstance(named, str) else named[0]

    def answers_of(self, row: Row) -> tuple[str, Any] | None:
        """(column, value) of a row's answers, None where it has none; of several columns the filled ones as a list."""
        several = self.columns.get("answers")
        if isinstance(several, list):
            given = [row[column] for column in several if row.get(column) not in (None, "")]
            return (", ".join(several), given) if any(column in row for column in several) else None
        columns = [self.name(key) for key in ("answers", "answer")]
        return next(((column, row[column]) for column in columns if column in row), None)

    def pattern_fields(self) -> list[str]:
        """Columns that the image pattern takes."""
        try:
            parsed = list(string.Formatter().parse(self.image_pattern or ""))
        except ValueError as fault:
            raise ConfigError(f"image_pattern {self.image_pattern!r}: {fault}.") from fault
        return [name for _, name, _, _ in parsed if name is not None]


def answer_texts(value: Any) -> dict[str, Any]:
    """One answer, a list of them, or official objects {answer: ...} -> {"answers": distinct, "counts": how often}.

    In order of frequency, then of appearance. An annotator may have left an answer empty, but not all of them.
    """
    items = value if isinstance(value, list) else [value]
    given = [item.get("answer") if isinstance(item, dict) else item for item in items]
    for place, answer in enumerate(given):
        where = f"[{place}] " if isinstance(value, list) else ""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"{where}must be text, not {describe(answer)}")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise ValueError(f"{where}is {answer}, which is no number")
        if len(str(answer)) > MOST_CHARACTERS:
            raise ValueError(f"{where}has {len(str(answer))} characters; at most {MOST_CHARACTERS} are taken")
    counts = Counter(str(answer).strip() for answer in given)
    if not any(counts):
        raise ValueError("has no answer: it is empty")
    for answer in filter(None, counts):
        text(answer)
    ordered = counts.most_common()
    return {"answers": [answer for answer, _ in ordered], "counts": [count for _, count in ordered]}


@dataclass
class _File:
    """What one file holds: rows, annotations and images as tables, and its own facts (data_subtype ...)."""

    path: Path
    number: int
    rows: list[RowTable] = field(default_factory=list)
    annotations: RowTable | None = None
    images: RowTable | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def _read_file(number: int, path: Path, layout: Layout, faults: RowFaults) -> _File:
    found = _File(path, number)
    keyed: list[tuple[int, int, Row]] = []
    for member, value in read_members(path):
        if layout.key_column and isinstance(value, dict):
            keyed.append((number, len(keyed) + 1, {**value, layout.key_column: member}))
        elif isinstance(value, str | int | float):
            found.facts[member] = value
        elif member in ROWS and not isinstance(value, dict):
            found.rows.append(_table(number, path, value, faults))
        elif member == "annotations":
            found.annotations = _table(number, path, value, faults)
        elif member == "images":
            found.images = _table(number, path, value, faults)
    if keyed:
        found.rows.append(RowTable(keyed, [path]))
    if found.images is not None:
        found.annotations = None  # those of a COCO file are captions or boxes
    return found


def _table(number: int, path: Path, rows: Any, faults: RowFaults) -> RowTable:
    return RowTable(_objects(number, path, rows, faults), [path] * (number + 1))


def _objects(number: int, path: Path, rows: Any, faults: RowFaults) -> Iterator[tuple[int, int, Row]]:
    for place, row in rows:
        if isinstance(row, dict):
            yield number, place, row
        else:
            faults.add(f"{path}:{place}", no_row(row))


class _ById:
    """Rows of several tables by the value of one column.

    Raises through `faults`: rows without it, and two rows with the same.
    """

    def __init__(self, tables: Sequence[RowTable], column: str, faults: RowFaults) -> None:
        self._places: dict[Any, tuple[RowTable, int]] = {}
        for table in tables:
            for index in range(len(table)):
                name = table[index].get(column)
                if not isinstance(name, int | str) or isinstance(name, bool):
                    faults.add(table.place(index), f"field {column!r} is missing, or neither a number nor text")
                elif name in self._places:
                    other, first = self._places[name]
                    faults.add(table.place(index), f"{column} {name!r} was there before, at {other.place(first)}")
                else:
                    self._places[name] = table, index

    def get(self, name: Any) -> tuple[Row, str] | None:
        """(row, its place), or None where there is none."""
        if name not in self._places:
            return None
        table, index = self._places[name]
        return table[index], table.place(index)


def read_questions(paths: Sequence[Path], layout: Layout, answers_required: bool) -> RowTable:
    """The questions of a split.

    Rows: image, question, question_id (the row's place where the file has none); image_id, question_type, answer_type
    where they are known; answers (distinct) and counts where the split has answers.

    Args:
        paths: the split's files, read together.
        layout: how they are written.
        answers_required: a split without any answers is a fault (training).

    Raises:
        DataError: a file is missing or unreadable; up to 20 faulty rows in one message: duplicate question_id, a
            question without its annotation, without answers, without an image.
    """
    faults = RowFaults()
    found = [_read_file(number, path, layout, faults) for number, path in enumerate(paths)]
    if not any(file.rows for file in found):
        raise DataError(f"{', '.join(map(str, paths))}: no questions. Give a list of rows, or an official questions "
                        "file (with 'questions') and its annotations file (with 'annotations').")
    join = _Join(found, layout, faults)
    table = RowTable(join.rows(answers_required or join.has_answers()), paths)
    faults.stop_if_any()
    if not len(table):
        raise DataError(f"{', '.join(map(str, paths))}: no rows" + (" of this split." if layout.keep else "."))
    return table


class _Join:
    """Puts questions, annotations and image names together."""

    def __init__(self, files: Sequence[_File], layout: Layout, faults: RowFaults) -> None:
        self.files, self.layout, self.faults = files, layout, faults
        notes = [file.annotations for file in files if file.annotations is not None]
        self.annotations = _ById(notes, layout.name("question_id"), faults) if notes else None
        images = [file.images for file in files if file.images is not None]
        self.images = _ById(images, "id", faults) if images else None
        self.seen: dict[Any, str] = {}
        optional = {"question_id": identifier, "image_id": identifier, "question_type": text, "answer_type": text,
                    "image": file_name}
        self.fields = [Field("question", text, layout.name("question")),
                       *(Field(key, kind, layout.name(key), required=False) for key, kind in optional.items())]

    def has_answers(self) -> bool:
        """Whether the split has answers: an annotations file, or an answer in any of its rows."""
        if self.annotations is not None:
            return True
        names = {self.layout.name("answers"), self.layout.name("answer")}
        return any(not names.isdisjoint(table[index]) for file in self.files for table in file.rows
                   for index in range(len(table)))

    def rows(self, with_answers: bool) -> Iterator[tuple[int, int, Row]]:
        """Checked rows of all files; once there is a fault, only more faults are looked for."""
        count = 0
        for file in self.files:
            for table in file.rows:
                for index in range(len(table)):
                    raw, place = table[index], table.place(index)
                    if self.layout.keep is not None and not self.layout.keep(raw):
                        continue
                    row = self._row(raw, place, count, file, with_answers)
                    count += 1
                    if not self.faults.count:
                        yield file.number, int(place.rpartition(":")[2]), row

    def _row(self, raw: Row, place: str, count: int, file: _File, with_answers: bool) -> Row:
        row = checked_row(place, raw, self.fields, self.faults)
        row.setdefault("question_id", count)
        name = row["question_id"]
        if name in self.seen:
            self.faults.add(place, f"question_id {name!r} was there before, at {self.seen[name]}")
        self.seen[name] = place
        facts = {**file.facts, "split": self.layout.split, **raw}
        if with_answers:
            facts = self._answer(row, raw, place) | facts
        self._image(row, facts, place)
        return row

    def _answer(self, row: Row, raw: Row, place: str) -> Row:
        """Put the answers into the row; gives what the annotation says besides."""
        source, where, note = raw, place, {}
        if self.annotations is not None:
            found = self.annotations.get(row["question_id"])
            if found is None:
                self.faults.add(place, f"question_id {row['question_id']!r} has no annotation; the annotations file "
                                "belongs to another split, or lacks it")
                return {}
            source, where = found
            note = source
            for key in ("question_type", "answer_type", "image_id"):
                if key not in row and isinstance(source.get(self.layout.name(key)), str | int):
                    row[key] = source[self.layout.name(key)]
        answers = self.layout.answers_of(source)
        if answers is None:
            names = [self.layout.name(key) for key in ("answers", "answer")]
            self.faults.add(where, f"field {names[0]!r} (or {names[1]!r}) is missing, for question_id "
                            f"{row['question_id']!r}")
            return note
        column, value = answers
        try:
            row.update(answer_texts(value))
        except ValueError as fault:
            self.faults.add(where, f"field {column!r} {fault}, for question_id {row['question_id']!r}")
        return note

    def _image(self, row: Row, facts: Row, place: str) -> None:
        """Put the image's name into the row: by the pattern, the row's own column, or the list of images."""
        if self.layout.image_pattern:
            try:
                row["image"] = file_name(self.layout.image_pattern.format_map(facts))
            except KeyError as fault:
                self.faults.add(place, f"image_pattern takes {fault.args[0]!r}, which the row has not")
            except (ValueError, TypeError) as fault:
                self.faults.add(place, f"image_pattern {self.layout.image_pattern!r} does not fit: {fault}")
        elif "image" not in row:
            found = self.images.get(row.get("image_id")) if self.images is not None else None
            if found is None or "file_name" not in found[0]:
                self.faults.add(place, f"no image: the row has no {self.layout.name('image')!r} and its image_id "
                                f"{row.get('image_id')!r} is in no list of images; set image_pattern, or add a COCO "
                                "file with 'images' to the split's files")
            else:
                row["image"] = file_name(found[0]["file_name"])
