"""Annotation files -> checked rows in a table; a large table is kept in the cache and mapped from the second time on.

`read_table` opens a file: `readers` gives raw rows, `checked` checks them field by field, `tables.RowTable` holds them.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_lite import __version__
from lavis_lite.datasets.annotations.column_tables import open_columns
from lavis_lite.datasets.annotations.kinds import (
    MOST_CHARACTERS,
    Field,
    describe,
    faultless,
    file_name,
    identifier,
    text,
    texts,
)
from lavis_lite.datasets.annotations.readers import BadRow, FileFormat, of_split, read_rows
from lavis_lite.datasets.annotations.tables import BLOCK, Block, MappedTable, Row, RowTable
from lavis_lite.datasets.annotations.text_files import AUTO
from lavis_lite.datasets.files.locate import file_state, is_columnar
from lavis_lite.errors import DataError, did_you_mean
from lavis_lite.io.files import cache_root

__all__ = ["MOST_CHARACTERS", "Field", "Row", "RowErrors", "RowTable", "checked", "checked_row", "describe",
           "file_name", "identifier", "read_table", "text", "texts", "with_references"]

MOST_ERRORS = 20
CACHED_FROM = 8_000_000
"""bytes of annotation files from which on the checked table is kept in the cache folder"""
_READING = 3
"""raise it if files are read in another way, so that tables kept before are not used"""
_MOST_SHOWN = 5


# --- named columns ---------------------------------------------------------------------------------------------------
class NamedColumns:
    """Tracks which named columns the rows of a split's files have, so that a wrong name never goes unnoticed.

    Args:
        names: what a column holds -> its name in the section; several names if the values are in several columns.

    Attributes:
        unseen: names that no row had so far, and what they hold.
    """

    def __init__(self, names: Mapping[str, str | Sequence[str]]) -> None:
        listed = {key: [value] if isinstance(value, str) else value for key, value in names.items()}
        self.unseen = {column: key for key, columns in listed.items() for column in columns}
        self._present: dict[str, None] = {}

    def note(self, row: Mapping[str, Any]) -> None:
        """One more row of the files; cheap once all columns were seen."""
        if self.unseen:
            self._present.update(dict.fromkeys(map(str, row)))
            for column in self.unseen.keys() & row.keys():
                del self.unseen[column]

    def has(self, columns: Iterable[str]) -> bool:
        """Whether a row had one of these columns; known as long as a named column was not seen."""
        return any(column in self._present for column in columns)

    def refuse_unseen(self, files: Iterable[Path | str], except_for: Collection[str] = ()) -> None:
        """Check that every named column was seen.

        Args:
            files: for the message.
            except_for: what may be missing: what the columns hold, as in `names`.

        Raises:
            DataError: names the column, its purpose, and the nearest column that the rows have.
        """
        for column, key in self.unseen.items():
            if key not in except_for:
                raise DataError(f"{', '.join(map(str, files))}: no row has the column {column!r}, which the data set's "
                                f"section names for {key}; {did_you_mean(column, self._present)}")


def no_row(value: Any) -> str:
    """Why a value is not a row, as a clause."""
    return value.reason if isinstance(value, BadRow) else f"must be an object of named fields, not {describe(value)}"


# --- files -> table --------------------------------------------------------------------------------------------------
def read_table(files: Sequence[Path], fields: Sequence[Field], explode: str | None = None,
               keep: Callable[[Row], bool] | None = None, kept: str | None = None,
               form: FileFormat = AUTO) -> RowTable:
    """Read, check and hold annotation files.

    The table of large files is written to the cache folder; while the files stay as they are it is mapped from there.

    Args:
        files: JSON list, official COCO captions JSON, JSON lines, CSV or TSV (see `readers.read_rows`).
        fields: what a row must have; other columns are dropped.
        explode: key of a list field: one table row per element of the list.
        keep: whether a raw row counts; the others are left out, unchecked.
        kept: identifies `keep`; without it a table with `keep` is not cached.
        form: how the files are written, if that is known.

    Raises:
        DataError: a file is missing, unreadable or without rows; or up to 20 bad rows, all in one message.
    """
    if keep is None and not any(field.made for field in fields) and all(map(is_columnar, files)):
        by_column = open_columns(files, [(field.key, field.name, field.kind.__name__, field.required or field.named)
                                         for field in fields], explode)
        if by_column is not None:
            return by_column
    names = [(field.key, field.name, f"{field.kind.__module__}.{field.kind.__qualname__}", field.required, field.named,
              field.made_from) for field in fields]
    known = (kept is not None or keep is None) and not any(
        "<" in kind or field.made and field.made_from is None  # "<": a lambda
        for field, (_, _, kind, *_) in zip(fields, names, strict=True))
    made_from = repr((names, explode, kept if keep else "", form)) if known else None
    kinds = {field.key: field.kind.__name__ for field in fields} | ({explode: text.__name__} if explode else {})

    def rows(errors: RowErrors) -> Iterator[tuple[int, int, Row] | Block]:
        return checked_blocks(numbered_rows(files, form), files, fields, errors, explode, keep)

    return cached_table(files, made_from, rows, kinds, keep)


def numbered_rows(files: Sequence[Path], form: FileFormat = AUTO) -> Iterator[tuple[int, int, Any]]:
    """(file number, row number, raw row) of all rows of the files in order.

    Warns of a file without rows among several.
    """
    for file, one in enumerate(files):
        rows = read_rows(one, form, file)
        first = list(itertools.islice(rows, 1))
        if len(files) > 1 and not first:
            warnings.warn(f"{one}: has no rows; the other files of its split do.", stacklevel=2)
        yield from map(operator.add, itertools.repeat((file,)), itertools.chain(first, rows))


def made_rows(rows: Iterable[tuple[int, int, Any]], files: Sequence[Path], errors: RowErrors,
              make: Callable[[int, int, Row], Row | None]) -> Iterator[tuple[int, int, Row]]:
    """What `make` makes of (file number, row number, raw row); its None is left out, its ValueErrors go to `errors`."""
    for file, number, raw in rows:
        try:
            if not isinstance(raw, dict):
                raise ValueError(no_row(raw))
            row = make(file, number, raw)
        except ValueError as error:
            errors.add(f"{files[file]}:{number}", str(error))
        else:
            if row is not None:
                yield file, number, row


def cached_table(files: Sequence[Path], made_from: str | None,
                 rows: Callable[[RowErrors], Iterable[tuple[int, int, Row] | Block]],
                 kinds: Mapping[str, str] | None = None, keep: Callable[[Row], bool] | None = None) -> RowTable:
    """The table of some files, from the cache if it was made before from the same files in the same way.

    Args:
        files: the annotation files.
        made_from: identifies how the rows are made; None: the table is not cached.
        rows: makes the rows; adds what is wrong to the errors.
        kinds: see `RowTable`.
        keep: what chose the rows, for the message about an empty table.

    Raises:
        DataError: as `read_table`.
    """
    path, made_of = _cache_entry(files, made_from)
    held = _cached(path, made_of)
    if held is not None:
        return held
    errors = RowErrors()
    with collector_paused():
        table = RowTable(rows(errors), files, kinds)
    errors.stop_if_any()
    if not len(table):
        raise DataError(f"{', '.join(map(str, files))}: no rows{of_split(keep)}.")
    return _put_in_cache(table, path, made_of)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Context manager: inside it Python does not look for garbage. Rows of JSON have no circles, and it looks often."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cache_entry(files: Sequence[Path], made_from: str | None) -> tuple[Path | None, str]:
    """(path of a table in the cache, what it must be made of); None if the table is not cached."""
    present = [path for path in files if path.is_file()]
    if made_from is None or sum(path.stat().st_size for path in present) < CACHED_FROM:
        return None, ""
    question = repr([str(path.absolute()) for path in files]) + made_from
    digest = hashlib.sha256(question.encode()).hexdigest()[:16]
    made_of = repr((__version__, _READING, [file_state(path) for path in present]))
    return cache_root() / "tables" / f"{files[0].stem}-{digest}.safetensors", made_of


def _cached(path: Path | None, made_of: str) -> RowTable | None:
    if path is None or not path.exists():
        return None
    try:
        held = MappedTable(path)
        if held.facts.get("made_of") != made_of:
            return None
        held.check_all()  # now: it can be made again here, and not once a run has begun
    except (DataError, KeyError, ValueError) as error:
        warnings.warn(f"{path} cannot be used and is rewritten: {error}", stacklevel=3)
        return None
    return held


def _put_in_cache(table: RowTable, path: Path | None, made_of: str) -> RowTable:
    """The same table, mapped if it could be written."""
    if path is None:
        return table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path, made_of=made_of)
    except OSError as error:
        warnings.warn(f"{path}: the annotations cannot be kept for the next time ({error}).", stacklevel=3)
        return table
    return MappedTable(path)


class RowErrors:
    """Faulty rows: the first `most` as messages, the others counted.

    Attributes:
        left_out: rows that are not used because the section says so, which is not an error.
    """

    def __init__(self, most: int = MOST_ERRORS) -> None:
        self.shown: list[str] = []
        self.most = most
        self.count = self.left_out = 0

    def add(self, location: str, error: str) -> None:
        """Note one error of a row; `location` is file:row."""
        self.count += 1
        if len(self.shown) < self.most:
            self.shown.append(f"  {location}: {error}")

    def stop_if_any(self) -> None:
        """Raise a DataError that lists the errors, if there are any."""
        if not self.count:
            return
        shown = self.shown[:MOST_ERRORS]
        more = [f"  and {self.count - len(shown)} more"] if self.count > len(shown) else []
        raise DataError("\n".join([f"{self.count} faulty annotation row{'s' * (self.count > 1)}:", *shown, *more]))


def checked(rows: Iterable[tuple[int, int, Any]], files: Sequence[Path | str], fields: Sequence[Field],
            errors: RowErrors, explode: str | None = None,
            keep: Callable[[Row], bool] | None = None) -> Iterator[tuple[int, int, Row]]:
    """Raw rows (file number, row number, value) -> the rows of a table; what is wrong is added to `errors`.

    After the first error nothing is yielded any more: the rest is read only to find more errors.

    Raises:
        DataError: a column that the section names is in no row.
    """
    names = [str(file) for file in files]
    for block in _noted(rows, files, fields, errors, keep):
        yield from _checked_rows(block, names, fields, errors, explode)


def checked_blocks(rows: Iterable[tuple[int, int, Any]], files: Sequence[Path | str], fields: Sequence[Field],
                   errors: RowErrors, explode: str | None = None,
                   keep: Callable[[Row], bool] | None = None) -> Iterator[tuple[int, int, Row] | Block]:
    """As `checked`, for a table: rows without an error come as blocks, in a third of the time."""
    names = [str(file) for file in files]
    for block in _noted(rows, files, fields, errors, keep):
        made = None if errors.count else faultless(block, fields, explode)
        if made is not None:
            yield made
        else:
            yield from _checked_rows(block, names, fields, errors, explode)


def _noted(rows: Iterable[tuple[int, int, Any]], files: Sequence[Path | str], fields: Sequence[Field],
           errors: RowErrors, keep: Callable[[Row], bool] | None) -> Iterator[list[tuple[int, int, Any]]]:
    """Raw rows in blocks, without those that do not count; their columns are noted and compared with named ones."""
    named, rows = NamedColumns({field.key: field.name for field in fields if field.named}), iter(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        for _, _, raw in block if named.unseen else ():
            if isinstance(raw, dict):
                named.note(raw)
        yield block if keep is None else [row for row in block if not isinstance(row[2], dict) or keep(row[2])]
    if not errors.count:
        named.refuse_unseen(files)


def _checked_rows(block: Iterable[tuple[int, int, Any]], names: Sequence[str], fields: Sequence[Field],
                  errors: RowErrors, explode: str | None) -> Iterator[tuple[int, int, Row]]:
    for file, number, raw in block:
        if not isinstance(raw, dict):
            errors.add(f"{names[file]}:{number}", no_row(raw))
            continue
        row = checked_row(f"{names[file]}:{number}", raw, fields, errors)
        if errors.count:
            continue
        if explode is None:
            yield file, number, row
        else:
            yield from ((file, number, {**row, explode: element}) for element in row[explode])


def checked_row(location: str, raw: Row, fields: Sequence[Field], errors: RowErrors) -> Row:
    """The row's fields, checked; those that are wrong are left out and reported with their `location`, file:row."""
    row: Row = {}
    for field in fields:
        name, made = field.name, field.made
        if made is None and name not in raw:
            if field.required:
                near = ", ".join(sorted(map(str, raw))[:8])
                errors.add(location, f"field {name!r} is missing (it has: {near or 'nothing'})")
            continue
        try:
            row[field.key] = field.kind(raw[name] if made is None else made(raw))
        except ValueError as error:
            if field.required or raw[name] not in (None, ""):
                clause = str(error)
                errors.add(location, f"field {name!r}{'' if clause.startswith('[') else ' '}{clause}")
    return row


def with_references(table: RowTable, path: Path, split: str) -> RowTable:
    """The rows of a split with the captions that a COCO captions file has for their image_id; its `domain` comes along.

    Args:
        table: rows with image and image_id; their own captions are replaced.
        path: COCO captions file, or a list of {image_id, caption}.
        split: for messages.

    Raises:
        DataError: the file is faulty, a row has no image_id, or the file has no caption for one.
    """
    fields = [Field("image_id", identifier), Field("caption", texts), Field("domain", text, required=False)]
    found: dict[int | str, Row] = {}
    for row in read_table([path], fields).skim():
        known = found.setdefault(row["image_id"], {"caption": []})
        known["caption"] += row["caption"]
        if row.get("domain"):
            known["domain"] = row["domain"]
    rows = list(table.items())
    bare = [table.location(index) for index, (_, _, row) in enumerate(rows) if row.get("image_id") is None]
    if bare:
        raise DataError(f"{len(bare)} of {len(rows)} images of split {split!r} have no image_id, so their captions "
                        f"cannot be looked up in {path}; the first is {bare[0]}. Name the column in columns.image_id.")
    lost = [row["image_id"] for _, _, row in rows if row["image_id"] not in found]
    if lost:
        shown = ", ".join(map(repr, lost[:_MOST_SHOWN])) + (", ..." if len(lost) > _MOST_SHOWN else "")
        raise DataError(f"{path}: has no caption for {len(lost)} of the {len(rows)} images of split {split!r}; image "
                        f"ids: {shown}. It belongs to another split.")
    return RowTable(((file, number, {**row, **found[row["image_id"]]}) for file, number, row in rows), table.files)
