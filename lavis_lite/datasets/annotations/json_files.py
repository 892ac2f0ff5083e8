"""JSON files read element by element, so that a file of a gigabyte is never a gigabyte of objects."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.json_text import DECODER, json_fault
from lavis_lite.datasets.annotations.text_files import read_text
from lavis_lite.errors import DataError

NumberedRow = tuple[int, Any]
_SPACE = " \t\r\n"


def skip_space(content: str, place: int) -> int:
    """Index of the first character from `place` on that is no white space."""
    while place < len(content) and content[place] in _SPACE:
        place += 1
    return place


def list_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    """Elements of the list that a file is, with their numbers from 1.

    Raises:
        DataError: not JSON; names the element.
    """
    place = yield from _elements(path, content, skip_space(content, 0))
    if skip_space(content, place) < len(content):
        raise DataError(f"{path}: there is text after the list's end.")


def _elements(path: Path, content: str, place: int, member: str = "") -> Generator[NumberedRow, None, int]:
    """Elements of the list that begins at `place`; returns the index after it."""
    number, place = 0, skip_space(content, place + 1)
    closed = content[place:place + 1] == "]"
    if closed:
        place += 1
    while not closed:
        number += 1
        where = f"{path}: {member}[{number}]" if member else f"{path}:{number}"
        row, place = _decoded(where, content, place)
        place = skip_space(content, place)
        mark = content[place:place + 1]
        if mark not in (",", "]") or mark == "":
            raise DataError(f"{where}: after this row a ',' or ']' is expected"
                            + (", but the file ends." if mark == "" else f", not {mark!r}."))
        yield number, row
        closed, place = mark == "]", skip_space(content, place + 1)
    return place


def object_members(path: Path, content: str, within: str | None) -> Iterator[tuple[str, Any]]:
    """Members of the object that a file is, (name, value); lists as iterators over (number, element).

    The members of an object called `within` come in its place. An element is decoded when it is asked for; those that
    are left are skipped when the next member is asked for.

    Raises:
        DataError: not JSON, or a member that stands twice.
    """
    seen: set[str] = set()
    for name, value in _members(path, content, skip_space(content, 0), within):
        if name in seen:
            raise DataError(f"{path}: key {name!r} stands twice in one object.")
        seen.add(name)
        yield name, value


def _members(path: Path, content: str, place: int, within: str | None) -> Generator[tuple[str, Any], None, int]:
    """Members of the object that begins at `place`; returns the index after it."""
    first = skip_space(content, place + 1)
    empty = content[first:first + 1] == "}"
    mark = "" if empty else ","
    while mark == ",":
        name, place = _decoded(str(path), content, skip_space(content, place + 1))
        place = skip_space(content, place)
        if not isinstance(name, str) or content[place:place + 1] != ":":
            raise DataError(f"{path}: not JSON (after {name!r} a ':' is expected).")
        place = skip_space(content, place + 1)
        if content[place:place + 1] == "[":
            rows = _Elements(path, content, place, name)
            yield name, rows
            place = rows.end()
        elif name == within and content[place:place + 1] == "{":
            place = yield from _members(path, content, place, None)
        else:
            value, place = _decoded(str(path), content, place)
            yield name, value
        place = skip_space(content, place)
        mark = content[place:place + 1]
        if mark not in (",", "}") or mark == "":
            raise DataError(f"{path}: not JSON (after {name!r} a ',' or '}}' is expected).")
    return first + 1 if empty else place + 1


def read_folder(folder: Path, files: str) -> Iterator[tuple[str, Any]]:
    """JSON files of a folder, one object each: (name of the folder it is in, object), by number where names have one.

    Args:
        folder: where to look.
        files: their names relative to it, such as "*/data.json".

    Raises:
        DataError: no such files, or one of them is not JSON.
    """
    found = sorted(folder.glob(files), key=lambda path: (len(path.parent.name), path.parent.name))
    if not found:
        raise DataError(f"{folder}: has no files {files}.")
    for path in found:
        yield path.parent.name, json_object(path)


def json_object(path: Path) -> Any:
    """The one value of a small JSON file.

    Raises:
        DataError: missing, unreadable, empty or not JSON.
    """
    content = read_text(path)
    value, place = _decoded(str(path), content, skip_space(content, 0))
    if skip_space(content, place) < len(content):
        raise DataError(f"{path}: there is text after the value's end.")
    return value


def _decoded(where: str, content: str, place: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(content, place)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{where}: {json_fault(fault)}.") from fault


class _Elements:
    """An iterator over a list's elements that knows where the list ends."""

    def __init__(self, path: Path, content: str, place: int, member: str) -> None:
        self._rows, self._end = _elements(path, content, place, member), -1

    def __iter__(self) -> Iterator[NumberedRow]:
        return self

    def __next__(self) -> NumberedRow:
        try:
            return next(self._rows)
        except StopIteration as stop:
            self._end = self._end if stop.value is None else stop.value  # asked once more, it knows no end
            raise

    def end(self) -> int:
        """Index after the list; elements that nobody took are read and dropped."""
        for _ in self:
            continue
        return self._end
