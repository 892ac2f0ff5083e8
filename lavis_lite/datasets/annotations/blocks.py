"""Rows without an error, checked and written a block at a time: most rows of most files.

A loop of Python over values costs more than reading the file. Whole columns of a block are looked at by functions in C.
What is not plain text or whole numbers, or might be wrong, is left to the check row by row, which knows the messages.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lavis_lite.datasets.annotations.kinds import MOST_CHARACTERS, Field, file_name, identifier, text, texts
from lavis_lite.datasets.annotations.tables import QUOTE, Block

_HALF = re.compile("[\ud800-\udfff]")


def faultless(rows: Sequence[tuple[int, int, Any]], fields: Sequence[Field], explode: str | None) -> Block | None:
    """The rows of a table that raw rows become; None: they must be checked one by one.

    Args:
        rows: (file number, row number, raw row).
        fields, explode: as `rows.read_table`.
    """
    try:
        files, numbers, raws = zip(*rows, strict=True)
        present = [field for field in fields if field.required or field.name in raws[0]]
        columns = [[raw[field.name] for raw in raws] for field in present]
        written = [_WRITTEN[field.kind](column) for field, column in zip(present, columns, strict=True)]
    except (KeyError, TypeError, ValueError):
        return None
    absent = [field.name for field in fields if field not in present]
    if not written or None in written or any(name in raw for name in absent for raw in raws) or any(
            field.made is not None for field in fields):
        return None
    return Block(list(zip(files, numbers, strict=True)), *_joined(present, written, explode))


def _joined(fields: Sequence[Field], columns: Sequence[list[str]], explode: str | None) -> tuple[str, list[int]]:
    """(JSON of all rows, length of each), from the fields' values: columns side by side, with keys between them."""
    keys, ending = [], ""
    for field in fields:
        is_list = field.kind is texts and field.key != explode
        keys.append(f"{ending}{',' if keys else '{'}{QUOTE(field.key)}:{'[' * is_list}")
        ending = "]" * is_list
    count, step = len(columns[0]), 2 * len(fields) + 1
    pieces = [f"{ending}}}"] * (count * step)
    for index, (key, column) in enumerate(zip(keys, columns, strict=True)):
        pieces[2 * index::step], pieces[2 * index + 1::step] = [key] * count, column
    lengths = map(len, columns[0])
    for column in columns[1:]:
        lengths = map(operator.add, lengths, map(len, column))
    fixed = sum(map(len, keys)) + len(ending) + 1
    return "".join(pieces), [length + fixed for length in lengths]


def _texts(values: Sequence[Any]) -> list[str] | None:
    """JSON of values that `kinds.text` takes as they are; None: there may be others.

    Raises:
        TypeError: not all are strings.
    """
    joined = "".join(values)
    if "\0" in joined or max(map(len, values)) > MOST_CHARACTERS or not all(map(str.strip, values)):
        return None
    return None if not joined.isascii() and _HALF.search(joined) else list(map(QUOTE, values))


def _file_names(values: Sequence[Any]) -> list[str] | None:
    return None if ".." in "".join(values) else _texts(values)


def _identifiers(values: Sequence[Any]) -> list[str] | None:
    if set(map(type, values)) == {int}:
        return list(map(str, values)) if -2**63 <= min(values) and max(values) < 2**63 else None
    joined = "".join(values)
    return None if "." in joined or "," in joined else _texts(values)  # what a spreadsheet made of numbers has one


_WRITTEN: Mapping[Callable[[Any], Any], Callable[[Sequence[Any]], list[str] | None]] = {
    text: _texts, texts: _texts, file_name: _file_names, identifier: _identifiers}
"""kind of a field -> JSON of a column"""
