"""The values of annotation rows: fields, and their kinds (raw value -> value of the table, or a ValueError).

Most rows of most files have no error. These are checked and written a block at a time, because a loop of Python over
values costs more than reading the file: functions in C look at whole columns. What is not plain text or whole numbers,
or might be wrong, is left to the check row by row, which knows the messages.
"""

from __future__ import annotations

import ast
import functools
import operator
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lavis_lite.datasets.annotations.tables import QUOTE, Block, Row

MOST_CHARACTERS = 20_000
"""of a caption, a question or a file name"""
WITHIN = ("data:", "cell:")
"""how names of pictures begin that are in the annotations: an address, or a cell of a Parquet file"""
BETWEEN_NAMES = "\n"
"""between the names of several images of one row"""


@dataclass(frozen=True)
class Field:
    """One value that every row must (or may) have.

    Args:
        key: its key in the table.
        kind: raw value -> value of the table; raises ValueError with a clause that says what is wrong.
        column: its name in the file; by default `key`.
        required: whether every row must have it.
        named: whether the section names the column: then at least one row must have it.
        made: raw row -> raw value, if it is made of other columns; raises ValueError.
        made_from: identifies `made`, beside `column`, if its values follow from the row; else tables are not cached.
    """

    key: str
    kind: Callable[[Any], Any]
    column: str | None = None
    required: bool = True
    named: bool = False
    made: Callable[[Row], Any] | None = None
    made_from: str | None = None

    @functools.cached_property
    def name(self) -> str:
        """The column's name in the file."""
        return self.column or self.key


def text(value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {describe(value)}")
    if not value.strip():
        raise ValueError("is empty")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"has {len(value)} characters; at most {MOST_CHARACTERS} are taken")
    return readable(value)


def readable(value: str) -> str:
    """A string of characters that belong to texts."""
    if "\0" in value:
        raise ValueError("has a null character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("has half of a surrogate pair, which is not a character")
    return value


def texts(value: Any) -> list[str]:
    """One non-empty string or a non-empty list of them -> list."""
    if not isinstance(value, list):
        refuse_written_list(value)
        return [text(value)]
    if not value:
        raise ValueError("is an empty list")
    for index, item in enumerate(value):
        try:
            text(item)
        except ValueError as error:
            raise ValueError(f"[{index}] {error}") from error
    return value


def refuse_written_list(value: Any) -> None:
    """Refuse a list of texts that became one text, as pandas writes lists into CSV files: "['a dog', 'two dogs']"."""
    if not may_be_list(value):
        return
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
        raise ValueError(f"is a list written as one text, {value[:60]!r}; write a list (JSON, JSONL or Parquet), or "
                         "one row for each text")


def may_be_list(value: Any) -> bool:
    """Whether a value is a text in square brackets."""
    begins = isinstance(value, str) and value[:1] in "[ \t\r\n"  # few do, and only these are stripped
    return begins and value.strip()[:1] == "[" and value.rstrip()[-1:] == "]"


def file_name(value: Any) -> str:
    """A path relative to the image folder, as `one_spelling` writes it; a list of one path is that path."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"names {len(value)} files; a row has one")
    value = text(value[0] if isinstance(value, list) else value)
    if ".." in value and posixpath.normpath(value.replace("\\", "/")).split("/")[0] == "..":
        raise ValueError(f"leads out of its folder: {value[:200]!r}")
    return one_spelling(value)


def one_spelling(name: str) -> str:
    """A path without "./", "//" and "..": data sets know an image by its name, so a file must have one.

    Names of pictures within the annotations stay as they are.
    """
    odd = ("//" in name or "./" in name) and not name.startswith(WITHIN)
    return posixpath.normpath(name) if odd else name


_WHOLE = re.compile(r"\d+\.0")
_SHORTENED = re.compile(r"\d[.,]\d+[eE]\+\d+")


def identifier(value: Any) -> int | str:
    """A number or a name; 391895.0, as pandas writes whole numbers in a column with gaps, is 391895, as text too."""
    if type(value) is int and -2**63 <= value < 2**63:  # nearly all are
        return value
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"is {value}, which is not a whole number")
        if abs(value) >= 2**53:  # from here on a float may stand for several whole numbers
            raise ValueError(f"is {value!r}, whose last digits may be lost; write it without a point and exponent")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a number or text, not {describe(value)}")
    if isinstance(value, int):
        if not -2**63 <= value < 2**63:
            raise ValueError("is a number of more than 64 bits")
        return value
    if _SHORTENED.fullmatch(text(value)):
        raise ValueError(f"is {value!r}, which a spreadsheet has made of a longer number; export the column as text")
    return value.partition(".")[0] if _WHOLE.fullmatch(value) else value


def describe(value: Any) -> str:
    """The kind of a value, for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def words(value: Any) -> list[str]:
    """A list of texts or numbers, empty ones left out -> list of texts."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of texts, not {describe(value)}")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ValueError(f"[{index}] must be text, not {describe(item)}")
    return [text(str(item)) for item in value if str(item).strip()]


def flag(value: Any) -> bool:
    """True or false, or the word for it, as tables have it."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {describe(value)}")
    return value


def choice_list(value: Any) -> list[str]:
    """At least one option, none of them empty."""
    found = words(value)
    if not found or len(found) < len(value):
        raise ValueError("must be options, none of them empty")
    return found


def file_names(value: Any) -> str:
    """Names of several images of a row, joined as `ImagesFolder` splits them."""
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"must be a list of several file names, not {describe(value)}")
    return BETWEEN_NAMES.join(map(file_name, value))


# --- whole columns ---------------------------------------------------------------------------------------------------
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
    origins = [0] * (2 * len(raws))
    origins[::2], origins[1::2] = files, numbers
    return Block(origins, *_joined(present, cast("list[list[str]]", written), explode))


def _joined(fields: Sequence[Field], columns: Sequence[list[str]], explode: str | None) -> tuple[str, list[int]]:
    """(JSON of all rows, length of each), from the fields' values: columns side by side, with keys between them."""
    keys, ending = list[str](), ""
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


def _captions(values: Sequence[Any]) -> list[str] | None:
    return None if "[" in "".join(values) and any(map(may_be_list, values)) else _texts(values)


def _file_names(values: Sequence[Any]) -> list[str] | None:
    joined = "".join(values)
    return None if "//" in joined or "./" in joined or ".." in joined else _texts(values)


def _identifiers(values: Sequence[Any]) -> list[str] | None:
    if set(map(type, values)) == {int}:
        return list(map(str, values)) if -2**63 <= min(values) and max(values) < 2**63 else None
    joined = "".join(values)
    return None if "." in joined or "," in joined else _texts(values)  # what a spreadsheet made of numbers has one


_WRITTEN: Mapping[Callable[[Any], Any], Callable[[Sequence[Any]], list[str] | None]] = {
    text: _texts, texts: _captions, file_name: _file_names, identifier: _identifiers}
"""kind of a field -> JSON of a column"""
