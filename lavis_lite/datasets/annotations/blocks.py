"""Rows without an error, checked and written a block at a time: most rows of most files.

A loop of Python over values costs more than reading the file. Whole columns of a block are looked at by functions in C.
What is not plain text or whole numbers, or might be wrong, is left to the check row by row, which knows the messages.
"""

from __future__ import annotations

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
        raws = [raw for _, _, raw in rows]
        present = [field for field in fields if field.required or field.name in raws[0]]
        columns = [[raw[field.name] for raw in raws] for field in present]
        written = [_WRITTEN[field.kind](column) for field, column in zip(present, columns, strict=True)]
    except (IndexError, KeyError, TypeError):
        return None
    absent = [field.name for field in fields if field not in present]
    if None in written or any(name in raw for name in absent for raw in raws) or any(
            field.made is not None for field in fields):
        return None
    parts = [f"{QUOTE(field.key)}:{'[%s]' if field.kind is texts and field.key != explode else '%s'}".replace("%", "%%")
             .replace("%%s", "%s") for field in present]
    row = "{" + ",".join(parts) + "}"
    return Block([(file, number) for file, number, _ in rows], [row % values for values in zip(*written, strict=True)])


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
    joined = "".join(values)
    return None if "//" in joined or "./" in joined or ".." in joined else _texts(values)


def _identifiers(values: Sequence[Any]) -> list[str] | None:
    if set(map(type, values)) == {int}:
        return list(map(str, values)) if -2**63 <= min(values) and max(values) < 2**63 else None
    joined = "".join(values)
    return None if "." in joined or "," in joined else _texts(values)  # what a spreadsheet made of numbers has one


_WRITTEN: Mapping[Callable[[Any], Any], Callable[[Sequence[Any]], list[str] | None]] = {
    text: _texts, texts: _texts, file_name: _file_names, identifier: _identifiers}
"""kind of a field -> JSON of a column"""
