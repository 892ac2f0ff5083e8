"""The values of an annotation row: what each may be, and what is said of one that is not."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lavis_lite.datasets.annotations.tables import MOST_CHARACTERS, Row


@dataclass(frozen=True)
class Field:
    """One value that every row must (or may) have.

    Args:
        key: its key in the table.
        kind: raw value -> value of the table; raises ValueError with a clause that says what is wrong.
        column: its name in the file; by default `key`.
        required: whether every row must have it.
        named: whether the section names the column: then at least one row must have it.
    """

    key: str
    kind: Callable[[Any], Any]
    column: str | None = None
    required: bool = True
    named: bool = False

    @functools.cached_property
    def name(self) -> str:
        """The column's name in the file."""
        return self.column or self.key

    def given(self, raw: Row) -> bool:
        """Whether a raw row has it."""
        return self.name in raw

    def value(self, raw: Row) -> Any:
        """Its raw value, if it is given."""
        return raw[self.name]


def text(value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {describe(value)}")
    if not value.strip():
        raise ValueError("is empty")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"has {len(value)} characters; at most {MOST_CHARACTERS} are taken")
    if "\0" in value:
        raise ValueError("has a null character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("has half of a surrogate pair, which is not a character")
    return value


def texts(value: Any) -> list[str]:
    """One non-empty string or a non-empty list of them -> list."""
    if not isinstance(value, list):
        return [text(value)]
    if not value:
        raise ValueError("is an empty list")
    for index, item in enumerate(value):
        try:
            text(item)
        except ValueError as error:
            raise ValueError(f"[{index}] {error}") from error
    return value


def file_name(value: Any) -> str:
    """A path relative to the image folder; a list of one path is that path."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"names {len(value)} files; a row has one")
    value = text(value[0] if isinstance(value, list) else value)
    if ".." in value and posixpath.normpath(value.replace("\\", "/")).split("/")[0] == "..":
        raise ValueError(f"leads out of its folder: {value[:200]!r}")
    return value


_WHOLE = re.compile(r"\d+\.0")
_SHORTENED = re.compile(r"\d[.,]\d+[eE]\+\d+")


def identifier(value: Any) -> int | str:
    """A number or a name; 391895.0, as pandas writes whole numbers in a column with gaps, is 391895, as text too."""
    if type(value) is int and -2**63 <= value < 2**63:  # nearly all are
        return value
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"is {value}, which is no whole number")
        if abs(value) >= 2**53:  # from here on a float may stand for several whole numbers
            raise ValueError(f"is {value!r}, whose last digits may be lost; write it without a point and exponent")
        value = int(value)
        if -2**63 <= value < 2**63:
            return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a number or text, not {describe(value)}")
    if isinstance(value, int):
        raise ValueError("is a number of more than 64 bits")
    if _SHORTENED.fullmatch(text(value)):
        raise ValueError(f"is {value!r}, which a spreadsheet has made of a longer number; export the column as text")
    return value.partition(".")[0] if _WHOLE.fullmatch(value) else value


def describe(value: Any) -> str:
    """The kind of a value, for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
