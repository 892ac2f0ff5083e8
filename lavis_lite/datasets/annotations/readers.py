"""Annotation files -> raw rows with their row numbers, one at a time.

A JSON file is decoded element by element, so that a file of a gigabyte is never a gigabyte of objects. Byte-order marks
and the line ends of all systems are accepted. Other line separators, such as U+2028, are part of a text.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.delimited import table_rows
from lavis_lite.datasets.annotations.text_files import (
    AUTO,
    DECODER,
    BadRow,
    FileFormat,
    NumberedRow,
    decoded,
    json_error,
    lines_of,
    read_text,
)
from lavis_lite.datasets.files import columnar
from lavis_lite.errors import DataError

__all__ = ["SUFFIXES", "BadRow", "FileFormat", "NumberedRow", "check_suffix", "json_object", "read_folder",
           "read_members", "read_rows"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", *columnar.SUFFIXES)
LISTS = ("data", "annotations", "rows", "samples", "items", "examples", "entries", "instances", "records", "train",
         "val", "test")
"""members that hold the rows of a file that is an object, if it has only one list"""
COMPANIONS = ("info", "license", "licenses", "categories", "version", "meta", "metadata")
"""members beside the rows that say nothing about single rows"""
_PANDAS = " Convert it, for example with: python -c \"import pandas; pandas.{}(...).to_json('rows.jsonl', {})\""
_CONVERT = {suffix: _PANDAS.format(reader, "orient='records', lines=True") for suffix, reader in
            ((".xlsx", "read_excel"), (".xls", "read_excel"), (".pkl", "read_pickle"))} | {
    ".tar": " Tars are read by their index: run `python -m lavis_lite data index DIR`, and name their folder DIR."}


def read_rows(path: Path, form: FileFormat = AUTO, file: int = 0) -> Iterator[NumberedRow]:
    """Rows of one file, by its suffix: (row number, row).

    `.json` is a list of objects, an object that wraps one, or an official COCO captions file (`images` +
    `annotations`: one row per caption with image, caption, image_id). `.jsonl` has one object per line. `.csv` and
    `.tsv` have a header line. The row number is the position in the list, from 1, or the row's first line. A row that
    cannot be read is a `BadRow`.

    Args:
        path: the file.
        form: how it is written, if that is known.
        file: its number among the files of a split; pictures in the cells of `.parquet` and `.arrow` have it in their
            names (`files.columnar`).

    Raises:
        DataError: missing, unreadable, empty or not in the format of its suffix; names file and row.
        MissingExtraError: Parquet and Arrow need pyarrow.
    """
    check_suffix(path)
    if columnar.is_columnar(path):
        return columnar.column_rows(path, file)
    content, suffix = read_text(path, form.encoding), path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return table_rows(path, content, form)
    is_list = content[_skip_space(content, 0)] == "["
    if suffix == ".json":
        return _list_rows(path, content) if is_list else _object_rows(path, content)
    if is_list:
        raise DataError(f"{path}: begins with a list, but has one object per line by its name. Name it .json if it is "
                        "one list of objects.")
    return _line_rows(content)


def check_suffix(path: Path) -> None:
    """Check that a file has a known format.

    Raises:
        DataError: names the suffix and the known ones.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: annotation files end in {', '.join(SUFFIXES)}, not in {path.suffix or 'nothing'!r}."
                        f"{_CONVERT.get(path.suffix.lower(), '')}")


def read_members(path: Path, within: str | None = None, form: FileFormat = AUTO,
                 file: int = 0) -> Iterator[tuple[str, Any]]:
    """Members of a JSON file that is an object, (name, value); lists as iterators over (number, element).

    The members of an object called `within` come in its place. A list's element is decoded when it is taken; elements
    that are left are skipped at the next member. A file of another layout is one member "" of rows; `file` as in
    `read_rows`.

    Raises:
        DataError: as `read_rows`; or a member that appears twice.
    """
    content = read_text(path, form.encoding) if path.suffix.lower() == ".json" else ""
    if not content or content[_skip_space(content, 0)] != "{":
        yield "", read_rows(path, form, file)
        return
    seen: set[str] = set()
    for name, value in _members(path, content, _skip_space(content, 0), within):
        if name in seen:
            raise DataError(f"{path}: key {name!r} appears twice in one object.")
        seen.add(name)
        yield name, value


def read_folder(folder: Path, files: str) -> Iterator[tuple[str, Any]]:
    """JSON files of a folder, one object each: (name of the file's folder, object), by number if names have one.

    Args:
        folder: searched for files.
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
    value, end = _decoded(str(path), content, _skip_space(content, 0))
    if _skip_space(content, end) < len(content):
        raise DataError(f"{path}: there is text after the value's end.")
    return value


def _line_rows(content: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines_of(content), 1):
        line = line.strip(" \t")
        if not line.strip():
            continue
        try:
            row, end = decoded(line, 0)
            if end < len(line):
                row = DECODER.decode(line)  # white space, or the error
        except (ValueError, RecursionError) as error:
            row = BadRow(json_error(error))
        yield number, row


# --- JSON, element by element; `at` is an index in the text ----------------------------------------------------------
_SEPARATOR = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")


def _skip_space(content: str, at: int) -> int:
    while at < len(content) and content[at] in " \t\r\n":
        at += 1
    return at


def _decoded(where: str, content: str, at: int) -> tuple[Any, int]:
    """(the value that begins at an index, the index after it)."""
    try:
        return decoded(content, at)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {json_error(error)}.") from error


def _list_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    end = yield from _elements(path, content, _skip_space(content, 0))
    if _skip_space(content, end) < len(content):
        raise DataError(f"{path}: there is text after the list's end.")


def _elements(path: Path, content: str, at: int, member: str = "") -> Generator[NumberedRow, None, int]:
    """Elements of the list that begins at an index, numbered from 1; returns the index after the list."""
    number, at = 0, _skip_space(content, at + 1)
    mark = content[at:at + 1]
    if mark == "]":
        at = _skip_space(content, at + 1)
    while mark != "]":
        number += 1
        try:
            row, end = decoded(content, at)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{_element(path, member, number)}: {json_error(error)}.") from error
        found = _SEPARATOR.match(content, end)
        if found is None:
            left = content[_skip_space(content, end):][:1]
            raise DataError(f"{_element(path, member, number)}: after this row a ',' or ']' is expected"
                            + (f", not {left!r}." if left else ", but the file ends."))
        yield number, row
        mark, at = found[1], found.end()
    return at


def _element(path: Path, member: str, number: int) -> str:
    return f"{path}: {member}[{number}]" if member else f"{path}:{number}"


class _Elements:
    """An iterator over a list's elements that knows the index after the list."""

    def __init__(self, path: Path, content: str, at: int, member: str) -> None:
        self._rows, self._end = _elements(path, content, at, member), -1

    def __iter__(self) -> Iterator[NumberedRow]:
        return self

    def __next__(self) -> NumberedRow:
        try:
            return next(self._rows)
        except StopIteration as stop:
            self._end = self._end if stop.value is None else stop.value  # None if it is called once more
            raise

    def end(self) -> int:
        """The index after the list; elements that nobody took are read and dropped."""
        for _ in self:
            continue
        return self._end


def _members(path: Path, content: str, at: int, within: str | None) -> Generator[tuple[str, Any], None, int]:
    """Members of the object that begins at an index; returns the index after it."""
    first = _skip_space(content, at + 1)
    empty = content[first:first + 1] == "}"
    mark = "" if empty else ","
    while mark == ",":
        name, at = _decoded(str(path), content, _skip_space(content, at + 1))
        at = _skip_space(content, at)
        if not isinstance(name, str) or content[at:at + 1] != ":":
            raise DataError(f"{path}: not JSON (after {name!r} a ':' is expected).")
        at = _skip_space(content, at + 1)
        if content[at:at + 1] == "[":
            rows = _Elements(path, content, at, name)
            yield name, rows
            at = rows.end()
        elif name == within and content[at:at + 1] == "{":
            at = yield from _members(path, content, at, None)
        else:
            value, at = _decoded(str(path), content, at)
            yield name, value
        at = _skip_space(content, at)
        mark = content[at:at + 1]
        if mark not in (",", "}") or mark == "":
            raise DataError(f"{path}: not JSON (after {name!r} a ',' or '}}' is expected).")
    return first + 1 if empty else at + 1


# --- JSON files that are an object: COCO captions, or a list of rows with facts about it -----------------------------
def _object_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    try:
        value = DECODER.decode(content.strip())
    except (ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        hint = " With one object per line, name it .jsonl." if lines else ""
        raise DataError(f"{path}: {json_error(error)}.{hint}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a list of objects, or a COCO captions file.")
    lists = [name for name, rows in value.items() if name not in COMPANIONS and isinstance(rows, list)
             and any(isinstance(row, dict) for row in rows)]
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        _refuse_others(path, lists, ("images", "annotations"))
        return _coco_rows(path, value)
    if isinstance(value.get("images"), list):  # those of a split without published captions
        _refuse_others(path, lists, ("images",))
        _check_coco(path, {**value, "annotations": []})
        return ((number, _of_image(image)) for number, image in enumerate(value["images"], 1))
    name = next((name for name in LISTS if isinstance(value.get(name), list)), None)
    if name is not None:
        _refuse_others(path, lists, (name,))
        return iter(list(enumerate(value[name], 1)))
    raise DataError(f"{path}: must be a list of objects, or a COCO captions file with 'images' and 'annotations'; it "
                    f"is an object with {', '.join(map(repr, list(value)[:6])) or 'nothing'}.")


def _refuse_others(path: Path, lists: list[str], read: tuple[str, ...]) -> None:
    """Check that no list of rows would be ignored."""
    others = [name for name in lists if name not in read]
    if others:
        raise DataError(f"{path}: has rows in {', '.join(map(repr, [*read, *others]))}; only {' and '.join(read)} "
                        "would be read. Write each list to a file of its own.")


def _of_image(image: dict[str, Any]) -> dict[str, Any]:
    named = {"image": image["file_name"]} if "file_name" in image else {}
    return {**image, **named, "image_id": image["id"]}


def _coco_rows(path: Path, value: dict[str, Any]) -> Iterator[NumberedRow]:
    """Captions joined with their images through pycocotools' index, grouped by image in the order of `images`."""
    _check_coco(path, value)
    from pycocotools.coco import COCO  # imported here: only files of this layout need it

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        index = COCO()
        numbers = {id(annotation): number for number, annotation in enumerate(value["annotations"], 1)}
        index.dataset = value
        index.createIndex()
    for image in value["images"]:
        facts = _of_image(image)
        for annotation in index.imgToAnns.get(image["id"], []):
            yield numbers[id(annotation)], {**facts, **annotation, "image_id": image["id"]}


def _check_coco(path: Path, value: dict[str, Any]) -> None:
    """Check the ids, which pycocotools answers with a bare KeyError or ignores."""
    for kind, keys in (("images", ("id",)), ("annotations", ("id", "image_id"))):
        for number, item in enumerate(value[kind], 1):
            bad = [key for key in keys if not isinstance(item, dict) or not isinstance(item.get(key), int | str)]
            if bad:
                raise DataError(f"{path}: {kind}[{number}]: field {bad[0]!r} is missing, or neither a number nor text.")
    known: dict[Any, int] = {}
    for number, image in enumerate(value["images"], 1):
        if image["id"] in known:
            raise DataError(f"{path}: images[{number}]: id {image['id']!r} was there before, at "
                            f"images[{known[image['id']]}]; captions could belong to either.")
        known[image["id"]] = number
    for number, annotation in enumerate(value["annotations"], 1):
        if (name := annotation["image_id"]) not in known:
            raise DataError(f"{path}: annotations[{number}]: image_id {name!r} is not among 'images'.")
