"""Annotation files -> raw rows with their row numbers, one at a time.

Byte-order marks and Windows line ends are tolerated. Lines end at a line feed only: U+2028 and its like are part of a
text.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.errors import DataError

NumberedRow = tuple[int, Any]
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_SPACE = " \t\r\n"
_MOST_FIELD = 16_000_000
"""characters of one CSV field that are read before the row check refuses it"""


def read_rows(path: Path) -> Iterator[NumberedRow]:
    """Rows of one file, by its suffix: (row number, row).

    `.json` is a list of objects or an official COCO captions file (`images` + `annotations`: one row per caption with
    image, caption, image_id); `.jsonl` has one object per line; `.csv` and `.tsv` have a header line. The row number
    is the place in the list, from 1, or the line number. A line that is no JSON comes as a `NotJSON`.

    Raises:
        DataError: missing, unreadable, empty or not in the format of its suffix; names file and place.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: annotation files end in {', '.join(SUFFIXES)}, not in {suffix or 'nothing'!r}.")
    content = _content(path)
    if suffix == ".json":
        return _json_rows(path, content)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, content, "," if suffix == ".csv" else "\t")
    return _line_rows(path, content)


def _content(path: Path) -> str:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as fault:
        raise DataError(f"{path}: there is no such annotation file.") from fault
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror or fault}).") from fault
    except UnicodeDecodeError as fault:
        raise DataError(f"{path}: is not UTF-8 text (byte {fault.start}); convert it, for example with "
                        f"`iconv -f LATIN1 -t UTF-8`.") from fault
    if not content.strip():
        raise DataError(f"{path}: the file is empty.")
    return content


def _json_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    """Elements of a list one by one (the whole list as objects would take ten times the memory of its text)."""
    place = _skip(content, 0)
    if content[place] != "[":
        yield from _object_rows(path, content)
        return
    place = yield from _elements(path, content, place)
    if _skip(content, place) < len(content):
        raise DataError(f"{path}: there is text after the list's end.")


def _elements(path: Path, content: str, place: int, member: str = "") -> Generator[NumberedRow, None, int]:
    """Elements of the list that begins at `place`; returns the place after it."""
    decoder, number, place = json.JSONDecoder(), 0, _skip(content, place + 1)
    closed = content[place:place + 1] == "]"
    if closed:
        place += 1
    while not closed:
        number += 1
        where = f"{path}: {member}[{number}]" if member else f"{path}:{number}"
        try:
            row, place = decoder.raw_decode(content, place)
        except (ValueError, RecursionError) as fault:
            raise DataError(f"{where}: not JSON ({_why(fault)}).") from fault
        place = _skip(content, place)
        mark = content[place:place + 1]
        if mark not in (",", "]") or mark == "":
            raise DataError(f"{where}: after this row a ',' or ']' is expected"
                            + (", but the file ends." if mark == "" else f", not {mark!r}."))
        yield number, row
        closed, place = mark == "]", _skip(content, place + 1)
    return place


def read_members(path: Path, within: str | None = None) -> Iterator[tuple[str, Any]]:
    """Members of a JSON file that is an object, (name, value); a list comes as an iterator over (number, element).

    The members of an object called `within` come in its place.

    An element is decoded when it is asked for, so that a file of a gigabyte is never a gigabyte of objects. Elements
    that are left are skipped when the next member is asked for. A file of another layout is one member "" of rows.

    Raises:
        DataError: as `read_rows`.
    """
    content = _content(path) if path.suffix.lower() == ".json" else ""
    if not content or content[_skip(content, 0)] != "{":
        yield "", read_rows(path)
        return
    yield from _members(path, content, _skip(content, 0), within)


def _members(path: Path, content: str, place: int, within: str | None) -> Generator[tuple[str, Any], None, int]:
    """Members of the object that begins at `place`; returns the place after it."""
    decoder, first = json.JSONDecoder(), _skip(content, place + 1)
    empty = content[first:first + 1] == "}"
    mark = "" if empty else ","
    while mark == ",":
        name, place = _decoded(path, content, _skip(content, place + 1), decoder)
        place = _skip(content, place)
        if not isinstance(name, str) or content[place:place + 1] != ":":
            raise DataError(f"{path}: not JSON (after {name!r} a ':' is expected).")
        place = _skip(content, place + 1)
        if content[place:place + 1] == "[":
            rows = _Elements(path, content, place, name)
            yield name, rows
            place = rows.end()
        elif name == within and content[place:place + 1] == "{":
            place = yield from _members(path, content, place, None)
        else:
            value, place = _decoded(path, content, place, decoder)
            yield name, value
        place = _skip(content, place)
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
    content = _content(path)
    value, place = _decoded(path, content, _skip(content, 0), json.JSONDecoder())
    if _skip(content, place) < len(content):
        raise DataError(f"{path}: there is text after the value's end.")
    return value


def _decoded(path: Path, content: str, place: int, decoder: json.JSONDecoder) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(content, place)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{path}: not JSON ({_why(fault)}).") from fault


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
        """Place after the list; elements that nobody took are read and dropped."""
        for _ in self:
            continue
        return self._end


def _skip(content: str, place: int) -> int:
    while place < len(content) and content[place] in _SPACE:
        place += 1
    return place


def _why(fault: Exception) -> str:
    return "nested too deeply" if isinstance(fault, RecursionError) else str(fault)


def _object_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as fault:
        lines = isinstance(fault, json.JSONDecodeError) and fault.msg == "Extra data"
        hint = " With one object per line, name it .jsonl." if lines else ""
        raise DataError(f"{path}: not JSON ({_why(fault)}).{hint}") from fault
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a list of objects, or a COCO captions file.")
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return _coco_rows(path, value)
    if isinstance(value.get("images"), list) and "annotations" not in value:  # those of a split whose captions are kept
        return _image_rows(path, value["images"])
    if isinstance(value.get("data"), list):  # TextCaps and its like wrap the list
        return iter(list(enumerate(value["data"], 1)))
    raise DataError(f"{path}: must be a list of objects, or a COCO captions file with 'images' and 'annotations'; it "
                    f"is an object with {', '.join(map(repr, list(value)[:6])) or 'nothing'}.")


def _image_rows(path: Path, images: list[Any]) -> Iterator[NumberedRow]:
    """Rows of the images alone."""
    _check_coco(path, {"images": images, "annotations": []})
    for number, image in enumerate(images, 1):
        yield number, _of_image(image)


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
    """What pycocotools answers with a bare KeyError or by silence."""
    for kind, keys in (("images", ("id",)), ("annotations", ("id", "image_id"))):
        for number, item in enumerate(value[kind], 1):
            bad = [key for key in keys if not isinstance(item, dict) or not isinstance(item.get(key), int | str)]
            if bad:
                raise DataError(f"{path}: {kind}[{number}]: field {bad[0]!r} is missing, or neither a number nor text.")
    known = {image["id"] for image in value["images"]}
    for number, annotation in enumerate(value["annotations"], 1):
        if annotation["image_id"] not in known:
            name = annotation["image_id"]
            raise DataError(f"{path}: annotations[{number}]: image_id {name!r} is not among 'images'.")


@dataclass(frozen=True)
class NotJSON:
    """Stands for a line that is no JSON, so that all such lines can be told at once."""

    reason: str


def _line_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:
            row = NotJSON(f"not JSON ({_why(fault)})")
        yield number, row


def _table_rows(path: Path, content: str, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(_MOST_FIELD)
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            extra = row.pop(None, None)  # csv files cells beyond the header under None
            if extra:
                raise DataError(f"{path}:{reader.line_num}: {len(extra)} more cells than the header has; quote texts "
                                f"that hold a {'comma' if delimiter == ',' else 'tab'}.")
            yield reader.line_num, {key: cell for key, cell in row.items() if cell is not None}
    except csv.Error as fault:
        raise DataError(f"{path}:{reader.line_num}: not a readable table ({fault}).") from fault
