"""Annotation files -> checked rows in a table that stays the same size however many workers read it.

Rows live as JSON text in one byte tensor: forked workers share its pages because no Python object in it is ever
touched, spawned workers receive it through torch's shared memory. A row becomes a dict only while it is looked at.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_lite.datasets.readers import read_rows
from lavis_lite.errors import DataError

MOST_FAULTS = 20
MOST_CHARACTERS = 20_000
"""longest text taken for a caption, a question or a file name"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One value that every row must (or may) have.

    Args:
        key: its key in the table.
        kind: raw value -> value of the table; raises ValueError with a clause that says what is wrong.
        column: its name in the file; by default `key`.
        required: whether a row without it is a fault.
    """

    key: str
    kind: Callable[[Any], Any]
    column: str | None = None
    required: bool = True

    @property
    def name(self) -> str:
        """The column's name in the file."""
        return self.column or self.key

    def given(self, raw: Row) -> bool:
        """Whether a raw row has it."""
        return self.name in raw

    def value(self, raw: Row) -> Any:
        """Its raw value, where it is given."""
        return raw[self.name]


def text(value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {describe(value)}")
    if not value.strip():
        raise ValueError("is empty")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"has {len(value)} characters; at most {MOST_CHARACTERS} are taken")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("has half of a surrogate pair, which is not a character")
    return value


def texts(value: Any) -> list[str]:
    """One non-empty string or a non-empty list of them -> list."""
    if not isinstance(value, list):
        return [text(value)]
    if not value:
        raise ValueError("is an empty list")
    return [_element(place, item) for place, item in enumerate(value)]


def _element(place: int, item: Any) -> str:
    try:
        return text(item)
    except ValueError as fault:
        raise ValueError(f"[{place}] {fault}") from fault


def file_name(value: Any) -> str:
    """A path relative to the image folder."""
    if "\0" in text(value):
        raise ValueError("has a null character, which no file name can")
    return value


def identifier(value: Any) -> int | str:
    """A number or a name."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a number or text, not {describe(value)}")
    if isinstance(value, int) and not -2**63 <= value < 2**63:
        raise ValueError("is a number of more than 64 bits")
    return value if isinstance(value, int) else text(value)


def describe(value: Any) -> str:
    """What kind of thing a value is, for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


class RowTable:
    """Rows of one or more annotation files, in order. Indexing decodes one row.

    Args:
        rows: (file number, row number in that file, row) in order.
        files: the files, for messages.
    """

    def __init__(self, rows: Iterable[tuple[int, int, Row]], files: Sequence[Path]) -> None:
        self.files = [str(path) for path in files]
        data, ends, places = bytearray(), array("q", [0]), array("i")
        for file, number, row in rows:
            data += json.dumps(row, separators=(",", ":")).encode("ascii")
            ends.append(len(data))
            places.extend((file, number))
        self._data = torch.from_numpy(np.frombuffer(data, np.uint8))
        self._ends = torch.from_numpy(np.frombuffer(ends, np.int64))
        self._places = torch.from_numpy(np.frombuffer(places, np.int32)).view(-1, 2)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        first, end = self._ends[index:index + 2].tolist()
        return json.loads(self._data.numpy()[first:end].tobytes())

    def place(self, index: int) -> str:
        """`file:row` of a row, for messages. Rows of JSON lists count from 1; of line files it is the line number."""
        file, number = self._places[index].tolist()
        return f"{self.files[file]}:{number}"

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self._data, self._ends, self._places))


def read_table(files: Sequence[Path], fields: Sequence[Field], explode: str | None = None,
               keep: Callable[[Row], bool] | None = None) -> RowTable:
    """Read, check and hold annotation files.

    Args:
        files: JSON list, official COCO captions JSON, JSON lines, CSV or TSV (see `readers.read_rows`).
        fields: what a row must have; other columns are dropped.
        explode: key of a list field: one table row per element of the list, with that element in its place.
        keep: looks at a raw row; rows it refuses are left out, unchecked.

    Raises:
        DataError: a file is missing, unreadable or without rows; or up to 20 faulty rows, all in one message.
    """
    faults = RowFaults()
    table = RowTable(_checked(files, fields, explode, keep, faults), files)
    faults.stop_if_any()
    if not len(table):
        raise DataError(f"{', '.join(map(str, files))}: no rows" + (" of this split" if keep else "") + ".")
    return table


class RowFaults:
    """Faulty rows: the first twenty in words, the others counted."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, place: str, fault: str) -> None:
        """Note one fault of a row."""
        self.count += 1
        if len(self.shown) < MOST_FAULTS:
            self.shown.append(f"  {place}: {fault}")

    def stop_if_any(self) -> None:
        """Raise a DataError that lists what was noted."""
        if not self.count:
            return
        more = self.count - len(self.shown)
        lines = self.shown + ([f"  and {more} more"] if more else [])
        raise DataError(f"{self.count} faulty annotation row{'s' if self.count > 1 else ''}:\n" + "\n".join(lines))


def _checked(files: Sequence[Path], fields: Sequence[Field], explode: str | None,
             keep: Callable[[Row], bool] | None, faults: RowFaults) -> Iterator[tuple[int, int, Row]]:
    for file, path in enumerate(files):
        for number, raw in read_rows(path):
            if not isinstance(raw, dict):
                faults.add(f"{path}:{number}", f"must be an object of named fields, not {describe(raw)}")
                continue
            if keep is not None and not keep(raw):
                continue
            row = checked_row(f"{path}:{number}", raw, fields, faults)
            if faults.count:  # the table will not be used; go on only to find more faults
                continue
            if explode is None:
                yield file, number, row
            else:
                yield from ((file, number, {**row, explode: element}) for element in row[explode])


def checked_row(place: str, raw: Row, fields: Sequence[Field], faults: RowFaults) -> Row:
    """The row's fields, checked; those at fault are left out and noted."""
    row: Row = {}
    for field in fields:
        if not field.given(raw):
            if field.required:
                near = ", ".join(sorted(map(str, raw))[:8])
                faults.add(place, f"field {field.name!r} is missing (it has: {near or 'nothing'})")
            continue
        try:
            row[field.key] = field.kind(field.value(raw))
        except ValueError as fault:
            if field.required or field.value(raw) not in (None, ""):
                clause = str(fault)
                faults.add(place, f"field {field.name!r}{'' if clause.startswith('[') else ' '}{clause}")
    return row
