"""Annotation files -> text and strict JSON: byte-order marks, encodings, and what an editor would show as garbage.

A JSON file is decoded about a thousand elements at a time, so that a file of a gigabyte is never a gigabyte of objects.
Unusual elements are decoded one by one, by code that knows the messages. Byte-order marks and the line ends of all
systems are accepted. Other line separators, such as U+2028, are part of a text.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io.files import check_regular

Quoting = Literal["auto", "minimal", "none"]
NumberedRow = tuple[int, Any]
"""(row number, row)"""
CHUNK = 1 << 17
"""characters of a file that are taken at once"""
ONE_BY_ONE = 8
"""chunks or blocks that are decoded one by one after something unusual"""
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
                     (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""UTF-32 before UTF-16, whose mark is the beginning of UTF-32's"""
_LINE_END = re.compile(r"\r\n|\r|\n")
_USUAL = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1", "gb18030", "shift_jis", "euc_kr", "big5")


@dataclass(frozen=True)
class FileFormat:
    """How annotation files are written. The defaults detect it and refuse ambiguous files.

    Args:
        delimiter: between the cells of a CSV or TSV file; None: a comma, or a tab in .tsv, unless the header has
            another one of , ; | and tab instead.
        quoting: minimal: cells may be quoted, with line breaks in them; none: a quotation mark is part of the text;
            auto: as described in `delimited`.
        encoding: Python's name of it; None: UTF-8, or what a byte-order mark says.
    """

    delimiter: str | None = None
    quoting: Quoting = "auto"
    encoding: str | None = None


AUTO = FileFormat()


# --- text ------------------------------------------------------------------------------------------------------------
def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file, without its byte-order mark.

    Raises:
        DataError: missing, unreadable, no regular file, empty, in another encoding, or with null characters; names the
            line.
        ConfigError: the encoding is unknown.
    """
    check_regular(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    text = _decode(path, content, encoding)
    if not text or text.isspace():
        raise DataError(f"{path}: the file is empty.")
    if "\0" in text:
        raise DataError(_null_character(path, content, text))
    return text


def lines_of(content: str, keep_ends: bool = False) -> Iterator[str]:
    """The lines of a text, one at a time; they end as on Unix, Windows or old Macs, and nowhere else."""
    return (_any_lines(content, keep_ends) if keep_ends or "\r" in content
            else itertools.chain.from_iterable(block.split("\n") for block in blocks_of(content)))


def _any_lines(content: str, keep_ends: bool) -> Iterator[str]:
    start = 0
    for found in _LINE_END.finditer(content):
        yield content[start:found.end() if keep_ends else found.start()]
        start = found.end()
    if start < len(content):
        yield content[start:]


def blocks_of(content: str) -> Iterator[str]:
    """Whole lines that end in a line feed, about a chunk at a time, without the last line's end."""
    start = 0
    while start < len(content):
        end = content.find("\n", start + CHUNK) + 1 or len(content)
        yield content[start:end].removesuffix("\n")
        start = end


def codec_of(content: bytes, encoding: str | None = None) -> str:
    """The codec that a byte-order mark names, else `encoding`, else UTF-8."""
    marked = (codec for mark, codec in _BYTE_ORDER_MARKS if content.startswith(mark))
    return next(marked, encoding or "utf-8")


def _decode(path: Path, content: bytes, encoding: str | None) -> str:
    codec = codec_of(content, encoding)
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        advice = "Set `encoding` in the data set's section to the file's own."
        if codec in ("utf-8", "utf-8-sig"):
            advice = ("If it is Windows-1252, convert it with `iconv -f WINDOWS-1252 -t UTF-8 "
                      f"{path.name} > {path.stem}.utf8{path.suffix}`, or set `encoding: cp1252` in the data set's "
                      "section.")
        line = _line_of(content[:error.start].decode(codec, "ignore"))
        name = "UTF-8" if codec in ("utf-8", "utf-8-sig") else codec
        raise DataError(f"{path}:{line}: is not {name} text (byte {error.start}). {advice}") from error
    except LookupError as error:
        hint = did_you_mean(codec, _USUAL)
        raise ConfigError(f"encoding {codec!r}: there is no such text encoding; {hint}") from error


def _null_character(path: Path, content: bytes, text: str) -> str:
    where = f"{path}:{_line_of(text[:text.index(chr(0))])}"
    sides = content[0:2000:2].count(0), content[1:2000:2].count(0)
    if max(sides) * 5 > len(content[:2000]):  # every second byte of Western UTF-16 is null
        codec = "utf-16-be" if sides[0] > sides[1] else "utf-16-le"
        return (f"{where}: has null characters; it looks like UTF-16 without a byte-order mark. Set "
                f"`encoding: {codec}` in the data set's section.")
    return (f"{where}: has a null character, which is part of no text. Remove it, for example with "
            f"`tr -d '\\000' < {path.name} > clean{path.suffix}`.")


def _line_of(before: str) -> int:
    """The line number at the end of `before`."""
    return len(_LINE_END.findall(before)) + 1


# --- JSON ------------------------------------------------------------------------------------------------------------
class DuplicateKeyError(ValueError):
    """An object has one key twice; Python would keep the last value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"key {next(name for name in names if names.count(name) > 1)!r} appears twice in one "
                                "object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_LENIENT = json.JSONDecoder().raw_decode
_AFTER_KEY = ('":', " :", "\t:", "\n:", "\r:")
_MARK = "NaN"
_LINE_FEED, _BETWEEN = "\n", f",{_MARK},"
_PARTED = object()
_MARKED = json.JSONDecoder(
    parse_constant={_MARK: _PARTED, "Infinity": math.inf, "-Infinity": -math.inf}.__getitem__).raw_decode


def decoded(content: str, at: int) -> tuple[Any, int]:
    """As `DECODER.raw_decode`: (the value that begins at an index, the index after it).

    If no key appears twice, no Python code sees its pairs, which halves the time.

    Raises:
        ValueError, RecursionError: see `json_error`.
    """
    try:
        value, end = _LENIENT(content, at)
    except ValueError:
        return DECODER.raw_decode(content, at)  # says it, or finds another error before it
    if type(value) is dict and _unique_keys(content, at, end, len(value)):
        return value, end
    return DECODER.raw_decode(content, at)


def decoded_objects(content: str) -> list[dict[str, Any]] | None:
    """The elements of a JSON list of objects, decoded at once; None: read them one by one."""
    return _objects(_LENIENT, content, slice(None))


def decoded_lines(lines: str) -> list[dict[str, Any]] | None:
    """The objects of lines that have one each, decoded at once; None: read the lines one by one.

    The lines become a list with a mark between them, which no line has. If every second element is a mark, and there
    are as many others as lines, no element holds a mark. Then each line is one element.
    """
    if _MARK in lines:
        return None
    objects = _objects(_MARKED, f"[{lines.replace(_LINE_FEED, _BETWEEN)}]", slice(None, None, 2))
    return objects if objects and len(objects) == lines.count(_LINE_FEED) + 1 else None


def _objects(decode: Callable[[str, int], tuple[Any, int]], content: str, which: slice) -> list[dict[str, Any]] | None:
    """Those elements of a list that `which` says, if they are objects without a key twice and the others are marks."""
    try:
        values, end = decode(content, 0)
    except (ValueError, RecursionError):
        return None
    objects = values[which]
    if end < len(content) or set(map(type, objects)) != {dict} or values.count(_PARTED) != len(values) - len(objects):
        return None
    return objects if _unique_keys(content, 0, end, sum(map(len, objects))) else None


def _unique_keys(content: str, at: int, end: int, keys: int) -> bool:
    """Whether objects of so many keys surely have none twice: a bound on the pairs in the text is the number of keys.

    A colon after a key follows a quotation mark or white space. Most colons in texts do not.
    """
    return content.count(":", at, end) == keys or keys == sum(content.count(mark, at, end) for mark in _AFTER_KEY)


def json_error(error: Exception) -> str:
    """Why `DECODER` refused a text, as a clause."""
    if isinstance(error, DuplicateKeyError):
        return str(error)
    return f"not JSON ({'nested too deeply' if isinstance(error, RecursionError) else error})"


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that cannot be read, so that all such rows can be reported at once; `reason` is a clause."""

    reason: str


# --- JSON, element by element ----------------------------------------------------------------------------------------
_SPACE = re.compile(r"[ \t\r\n]*")


class Cursor:
    """A position in the text of a JSON file; what is read moves it on."""

    def __init__(self, path: Path, content: str) -> None:
        self.path, self.content, self.at = path, content, 0
        self.between, self.one_by_one = "", 0
        """what is between two elements of a list, with its braces; up to where elements are read one by one"""
        self.element: tuple[str, int] | None = None
        """(member, number) of the element of a list that is read now"""

    def where(self) -> str:
        """The file and the element, for messages; made when it is needed, not for every row."""
        member, number = self.element or ("", 0)
        return f"{self.path}: {member}[{number}]" if member else f"{self.path}:{number}" if number else str(self.path)

    def mark(self) -> str:
        """The next character that is not a space; "" at the end of the file."""
        self.at = _SPACE.match(self.content, self.at).end()  # type: ignore[union-attr]
        return self.content[self.at:self.at + 1]

    def value(self) -> Any:
        """The value that begins here."""
        try:
            begins = _SPACE.match(self.content, self.at).end()  # type: ignore[union-attr]
            value, self.at = decoded(self.content, begins)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where()}: {json_error(error)}.") from error
        return value

    def end(self, what: str) -> None:
        """Check that nothing follows."""
        if self.mark():
            raise DataError(f"{self.path}: there is text after the {what}'s end.")

    def whole_list(self) -> Iterator[NumberedRow]:
        """The elements of the list that is all of the file."""
        yield from self.elements()
        self.end("list")

    def elements(self, member: str = "") -> Iterator[NumberedRow]:
        """(number from 1, element) of the list that begins here."""
        self.at += 1
        number, mark = 0, "]" if self.mark() == "]" else ","
        while mark == ",":
            objects = self._objects()
            yield from enumerate(objects, number + 1)
            number += len(objects) + 1
            self.element = member, number
            row, mark = self.value(), self.mark()
            if mark not in (",", "]"):
                raise DataError(f"{self.where()}: after this row a ',' or ']' is expected"
                                + (f", not {mark!r}." if mark else ", but the file ends."))
            before = self.at
            self.at += mark == ","
            if mark == "," and self.mark() == "{":
                self.between = self.content[before - 1:self.at + 1]
            yield number, row
        self.at, self.element = self.at + 1, None

    def _objects(self) -> list[dict[str, Any]]:
        """The objects from here to a chunk's last comma, if nothing about them is unusual, else none."""
        end = self.content.rfind(self.between, self.at, self.at + CHUNK)
        if not self.between or self.at < self.one_by_one or end < 0:
            return []
        rows = decoded_objects(f"[{self.content[self.at:end + 1]}]")
        if not rows:
            self.one_by_one = end + ONE_BY_ONE * CHUNK
            return []
        self.at = end + len(self.between) - 1
        return rows

    def members(self, within: str | None) -> Iterator[tuple[str, Any]]:
        """(name, value) of the object that begins here; lists and `within` as in `read_members`."""
        self.at += 1
        mark = "}" if self.mark() == "}" else ","
        while mark == ",":
            name = self.value()
            if not isinstance(name, str) or self.mark() != ":":
                raise DataError(f"{self.path}: not JSON (after {name!r} a ':' is expected).")
            self.at += 1
            opening = self.mark()
            if opening == "[":
                rows = self.elements(name)
                yield name, rows
                for _ in rows:  # those that the caller left
                    continue
            elif name == within and opening == "{":
                yield from self.members(None)
            else:
                yield name, self.value()
            mark = self.mark()
            if mark not in (",", "}"):
                raise DataError(f"{self.path}: not JSON (after {name!r} a ',' or '}}' is expected).")
            self.at += mark == ","
        self.at += 1


def read_members(path: Path, within: str | None = None, form: FileFormat = AUTO) -> Iterator[tuple[str, Any]]:
    """Members of a JSON file that is an object, (name, value); lists as iterators over (number, element).

    The members of an object called `within` come in its place. A list's element is decoded when it is taken; elements
    that are left are skipped at the next member. A file of another layout is one member ("", None).

    Raises:
        DataError: missing, unreadable, empty or not JSON; or a member that appears twice, or text after the object.
    """
    cursor = Cursor(path, read_text(path, form.encoding) if path.suffix.lower() == ".json" else "")
    if cursor.mark() != "{":
        yield "", None
        return
    seen: set[str] = set()
    for name, value in cursor.members(within):
        if name in seen:
            raise DataError(f"{path}: key {name!r} appears twice in one object.")
        seen.add(name)
        yield name, value
    cursor.end("object")


def json_object(path: Path) -> Any:
    """The one value of a small JSON file.

    Raises:
        DataError: missing, unreadable, empty or not JSON.
    """
    cursor = Cursor(path, read_text(path))
    value = cursor.value()
    cursor.end("value")
    return value
