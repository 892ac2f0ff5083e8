"""Files of questions and answers, in whatever published layout -> one table of checked rows.

The files of a split are read together: official VQA questions and annotations are joined by question_id, COCO files
name the images, tables of OCR tokens are joined by image, flat lists (LAVIS' own) are complete in themselves. Whole
files are never held as objects.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.kinds import file_name, identifier
from lavis_lite.datasets.annotations.layout import EXTRAS, LABELS, Layout, answer_texts
from lavis_lite.datasets.annotations.readers import COMPANIONS, of_split, read_folder, read_rows
from lavis_lite.datasets.annotations.rows import NamedColumns, Row, RowErrors, RowTable, checked_row, no_row
from lavis_lite.datasets.annotations.text_files import read_members
from lavis_lite.errors import DataError, did_you_mean

__all__ = ["Layout", "answer_texts", "read_questions"]

ROWS = ("", "questions", "data")
"""members of a JSON object that hold questions; "" is a file of rows"""


def read_questions(paths: Sequence[Path], layout: Layout, answers_required: bool) -> RowTable:
    """The questions of a split.

    Rows: image, question, question_id (the row's index if the file has none); image_id, question_type, answer_type if
    they are known; answers (distinct) and counts if the split has answers.

    Args:
        paths: the split's files, read together.
        layout: how they are written.
        answers_required: a split without any answers is an error (training).

    Raises:
        DataError: a file is missing or unreadable; up to 20 faulty rows in one message: duplicate question_id, a
            question without its annotation, without answers, without an image; a column or a question type that is
            named and in no row.
    """
    errors, named = RowErrors(), NamedColumns(layout.named)
    files = [_read_file(number, path, layout, errors, named) for number, path in enumerate(paths)]
    names = ", ".join(map(str, paths))
    if not any(file.rows for file in files):
        raise DataError(f"{names}: no questions. Give a list of rows, or an official questions file (with 'questions') "
                        "and its annotations file (with 'annotations').")
    join = _Join(files, layout, errors)
    with_answers = answers_required or join.has_answers()
    table = RowTable(join.rows(with_answers), paths)
    errors.stop_if_any()
    join.refuse_unseen_types(names)
    labelled = with_answers or named.has(("answer", "answers"))
    lacking = [] if layout.join_column is None or join.joined is not None else [
        key for key in EXTRAS if key in layout.columns]
    if lacking:  # the files about images were not given (TextVQA's OCR tokens)
        warnings.warn(f"{names}: no file has rows about images, so that samples have no {' and no '.join(lacking)}.",
                      stacklevel=2)
    named.refuse_unseen(paths, [*(() if labelled else LABELS), *lacking])
    table.left_out = errors.left_out
    if not len(table):
        why = (f"all {table.left_out} rows are left out, because a column that `required` names is missing or empty in "
               f"them: {', '.join(map(repr, layout.required))}." if table.left_out else
               f"no rows{of_split(layout.keep)}.")
        raise DataError(f"{names}: {why}")
    join.warn_of_unused()
    return table


# --- one file --------------------------------------------------------------------------------------------------------
@dataclass
class _File:
    """The content of one file: rows, annotations, images and facts by image as tables, and its own facts."""

    path: Path
    number: int
    named: NamedColumns
    rows: list[RowTable] = field(default_factory=list)
    annotations: RowTable | None = None
    images: RowTable | None = None
    joined: RowTable | None = None
    keyed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def _read_file(number: int, path: Path, layout: Layout, errors: RowErrors, named: NamedColumns) -> _File:
    found = _File(path, number, named)
    if layout.key_column is not None:
        found.rows = [RowTable(_keyed(found, layout, errors), [path] * (number + 1))]
        if found.keyed:
            return found
        found.rows = []  # a list, whose rows are complete in themselves
    for member, value in _members(path, layout, number):
        if isinstance(value, str | int | float):
            found.facts[member] = value
        elif member in ROWS and not isinstance(value, dict):
            table = _table(found, value, errors, layout)
            if layout.join_column is not None and len(table) and layout.name("question") not in table[0]:
                found.joined = table
            else:
                found.rows.append(table)
        elif member in ("annotations", "images"):
            setattr(found, member, _table(found, value, errors))
        elif member not in COMPANIONS and _has_rows(value):
            errors.add(f"{path}: {member}", "is a list of rows that would not be read; rows belong in 'questions' or "
                                            "'data'. Write this list to a separate file")
    if found.images is not None:
        found.annotations = None  # those of a COCO file are captions or boxes
    return found


def _has_rows(value: Any) -> bool:
    """Whether a member is a list whose first element is an object; the element is taken."""
    first = next(value, None) if isinstance(value, Iterator) else None
    return first is not None and isinstance(first[1], dict)


def _keyed(found: _File, layout: Layout, errors: RowErrors) -> Iterator[tuple[int, int, Row]]:
    """Rows of an object of rows by name, or of a folder of files by the name of their folder."""
    path, key = found.path, str(layout.key_column)
    members = read_folder(path, layout.row_files) if path.is_dir() and layout.row_files else (
        read_members(path, form=layout.form))
    objects = ((name, value) for name, value in members if isinstance(value, dict))
    for number, (name, value) in enumerate(objects, 1):
        found.keyed = True
        yield from _objects(found, [(number, {**value, key: name})], errors, layout)


def _members(path: Path, layout: Layout, number: int) -> Iterator[tuple[str, Any]]:
    """Members of a file that is an object; one member "" of rows of any other file."""
    for member, value in read_members(path, form=layout.form):
        yield member, read_rows(path, layout.form, number) if not member and value is None else value


def _table(found: _File, rows: Any, errors: RowErrors, layout: Layout | None = None) -> RowTable:
    return RowTable(_objects(found, rows, errors, layout), [found.path] * (found.number + 1))


def _objects(found: _File, rows: Any, errors: RowErrors, layout: Layout | None) -> Iterator[tuple[int, int, Row]]:
    for number, row in rows:
        if not isinstance(row, dict):
            errors.add(f"{found.path}:{number}", no_row(row))
            continue
        found.named.note(row)
        try:
            if layout is None or layout.takes(row, errors):
                for part in layout.expand(row) if layout else (row,):
                    found.named.note(part)
                    yield found.number, number, part
        except ValueError as error:
            errors.add(f"{found.path}:{number}", str(error))


# --- files together --------------------------------------------------------------------------------------------------
class _ById:
    """Rows of several tables by the value of one column; rows without it and duplicates are added to `errors`."""

    def __init__(self, tables: Sequence[RowTable], column: str, errors: RowErrors) -> None:
        self._found: dict[Any, tuple[RowTable, int]] = {}
        for table in tables:
            for index, row in enumerate(table.skim()):
                name = _identity(row.get(column))
                if name is None:
                    errors.add(table.location(index), f"field {column!r} is missing, or neither a number nor text")
                elif name in self._found:
                    other, first = self._found[name]
                    errors.add(table.location(index), f"{column} {name!r} was there before, at {other.location(first)}")
                else:
                    self._found[name] = table, index

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found)

    def get(self, name: Any) -> tuple[Row, str] | None:
        """(row, its location), or None."""
        table, index = self._found.get(_identity(name), (None, 0))
        return None if table is None else (table[index], table.location(index))


def _identity(value: Any) -> int | str | None:
    """An id as `identifier` writes it; None if it is not an id."""
    try:
        return identifier(value)
    except ValueError:
        return None


class _Join:
    """Puts questions, annotations, image names and facts about images together."""

    def __init__(self, files: Sequence[_File], layout: Layout, errors: RowErrors) -> None:
        self.files, self.layout, self.errors = files, layout, errors
        self.annotations = self._by_id("annotations", layout.name("question_id"))
        self.images = self._by_id("images", "id")
        self.joined = self._by_id("joined", layout.join_column or "")
        self.seen: dict[Any, str] = {}
        """question_id -> where it is"""
        self.types: set[str] = set()
        """question types of all rows"""
        self.fields = layout.fields

    def _by_id(self, kind: str, column: str) -> _ById | None:
        tables = [table for file in self.files if (table := getattr(file, kind)) is not None]
        return _ById(tables, column, self.errors) if tables else None

    def has_answers(self) -> bool:
        """Whether the split has answers: an annotations file, or an answer in any of its rows that is not empty."""
        return self.annotations is not None or any(
            (self.layout.answers_of(row) or ("", None))[1] not in (None, "", [])
            for file in self.files for table in file.rows for row in table.skim())

    def rows(self, with_answers: bool) -> Iterator[tuple[int, int, Row]]:
        """Checked rows of all files; after the first error, only more errors are looked for."""
        count = 0
        for file in self.files:
            for table in file.rows:
                for index, raw in enumerate(table.skim()):
                    row = self._row(raw, table.location(index), count, file, with_answers)
                    count += 1
                    self.types.add(kind := row.get("question_type", ""))
                    if not self.errors.count and (not self.layout.types or kind in self.layout.types):
                        yield *table.origin(index), row

    def _row(self, raw: Row, where: str, count: int, file: _File, with_answers: bool) -> Row:
        if self.joined is not None:
            found = self.joined.get(raw.get(str(self.layout.join_column)))
            raw = {**(found[0] if found else {}), **raw}
        row = checked_row(where, raw, self.fields, self.errors)
        if self.layout.answer_words:
            row["choices"] = list(dict.fromkeys(self.layout.answer_words.values()))
        row.setdefault("question_id", count)
        name = row["question_id"]
        if name in self.seen:
            self.errors.add(where, f"question_id {name!r} was there before, at {self.seen[name]}")
        self.seen[name] = where
        facts = {**file.facts, "split": self.layout.split, **raw}
        if with_answers:
            facts = self._answer(row, raw, where) | facts
        if "image" in row or raw.get(self.layout.name("image")) in (None, ""):  # else it was reported already
            self._image(row, facts, where)
        return row

    def _answer(self, row: Row, raw: Row, where: str) -> Row:
        """Put the answers into the row; returns the annotation's other facts."""
        source, note = raw, {}
        if self.annotations is not None:
            found = self._annotation(self.annotations, row, where)
            if found is None:
                return {}
            source, where = found
            note = source
            for key in ("question_type", "answer_type", "image_id"):
                if key not in row and isinstance(source.get(self.layout.name(key)), str | int):
                    row[key] = source[self.layout.name(key)]
        answers = self.layout.answers_of(source)
        if answers is None:
            first, *others = map(repr, self.layout.answer_names())
            self.errors.add(where, f"field {first}{''.join(f' (or {other})' for other in others)} is missing, for "
                            f"question_id {row['question_id']!r}")
            return note
        column, value = answers
        try:
            row.update(self.layout.answer(value, row))
        except ValueError as error:
            self.errors.add(where, f"field {column!r} {error}, for question_id {row['question_id']!r}")
        return note

    def refuse_unseen_types(self, names: str) -> None:
        """Refuse a question type that no question of the files has."""
        known = sorted(self.types - {""})
        for name in self.layout.types:
            if name not in known:
                hint = did_you_mean(name, known) if known else "the questions of these files have no question_type"
                raise DataError(f"{names}: question_types.{self.layout.split}: no question is of type {name!r}; {hint}")

    def warn_of_unused(self) -> None:
        """Warn of annotations without a question, unless the section itself leaves questions out."""
        if self.annotations is None or self.layout.keep is not None or self.layout.required:
            return
        unused = [name for name in self.annotations if name not in self.seen]
        if unused:
            _, where = self.annotations.get(unused[0]) or ({}, "")
            warnings.warn(f"annotations without a question, which are not used: {len(unused)}, the first is "
                          f"question_id {unused[0]!r} at {where}.", stacklevel=3)

    def _annotation(self, annotations: _ById, row: Row, where: str) -> tuple[Row, str] | None:
        """The annotation of a question, and where it is; None and an error if it is missing or of another image."""
        name, image = row["question_id"], row.get("image_id")
        found = annotations.get(name)
        if found is None:
            alike = annotations.get(str(name)) or (annotations.get(int(name)) if str(name).isdecimal() else None)
            self.errors.add(where, f"question_id {name!r} has no annotation; " + (
                "the annotations file belongs to another split, or lacks it" if alike is None else
                f"{alike[1]} has it as {'text' if isinstance(name, int) else 'a number'}: ids must be numbers in both "
                "files, or text in both"))
            return None
        other = found[0].get(self.layout.name("image_id"))
        if image is not None and other is not None and str(other).removesuffix(".0") != str(image):
            self.errors.add(where, f"question_id {name!r} is about image_id {image!r}, but its annotation at "
                            f"{found[1]} is about {other!r}; the files belong to different splits")
            return None
        return found

    def _image(self, row: Row, facts: Row, where: str) -> None:
        """Put the image's name into the row: by the pattern, the row's own column, or the list of images."""
        if self.layout.pattern is not None:
            try:
                row["image"] = self.layout.pattern.fill(facts)
            except ValueError as error:
                self.errors.add(where, str(error))
        elif "image" not in row:
            found = self.images.get(row.get("image_id")) if self.images is not None else None
            if found is None or "file_name" not in found[0]:
                self.errors.add(where, f"no image: the row has no {self.layout.name('image')!r} and its image_id "
                                f"{row.get('image_id')!r} is in no list of images; set image_pattern, or add a COCO "
                                "file with 'images' to the split's files")
            else:
                row["image"] = file_name(found[0]["file_name"])
