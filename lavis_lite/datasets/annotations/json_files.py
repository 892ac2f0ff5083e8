"""JSON files, read strictly and element by element, so that a file of a gigabyte is never a gigabyte of objects."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.text_files import read_text
from lavis_lite.errors import DataError


class DuplicateKeyError(ValueError):
    """An object has one key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in one "
                                "object")
    return held


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def json_error(error: Exception) -> str:
    """What is wrong with a text that `DECODER` refused, as a clause."""
    if isinstance(error, DuplicateKeyError):
        return str(error)
    return f"not JSON ({'nested too deeply' if isinstance(error, RecursionError) else error})"


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that cannot be read, so that all such rows can be reported at once.

    Args:
        reason: what is wrong with it, as a clause.
    """

    reason: str


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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {json_error(error)}.") from error


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


LISTS = ("data", "annotations", "rows", "samples", "items", "examples", "entries", "instances", "records", "train",
         "val", "test")
"""members that hold the rows of a file that is an object, if it has one list alone"""
COMPANIONS = ("info", "license", "licenses", "categories", "version", "meta", "metadata")
"""members beside the rows that say nothing of single rows"""


def object_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    """Rows of a file that is an object, with their numbers in its list, from 1.

    Raises:
        DataError: not JSON, or none of the layouts known; names the members.
    """
    try:
        value = DECODER.decode(content.strip())
    except (ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        hint = " With one object per line, name it .jsonl." if lines else ""
        raise DataError(f"{path}: {json_error(error)}.{hint}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a list of objects, or a COCO captions file.")
    lists = [name for name, rows in value.items() if name not in COMPANIONS and _has_rows(rows)]
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        _refuse_others(path, lists, ("images", "annotations"))
        return _coco_rows(path, value)
    if isinstance(value.get("images"), list):  # those of a split whose captions are kept
        _refuse_others(path, lists, ("images",))
        return _image_rows(path, value["images"])
    name = next((name for name in LISTS if isinstance(value.get(name), list)), None)
    if name is not None:
        _refuse_others(path, lists, (name,))
        return iter(list(enumerate(value[name], 1)))
    raise DataError(f"{path}: must be a list of objects, or a COCO captions file with 'images' and 'annotations'; it "
                    f"is an object with {', '.join(map(repr, list(value)[:6])) or 'nothing'}.")


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def _refuse_others(path: Path, lists: list[str], read: tuple[str, ...]) -> None:
    """No list of rows is left unread without a word."""
    others = [name for name in lists if name not in read]
    if others:
        raise DataError(f"{path}: has rows in {', '.join(map(repr, [*read, *others]))}; only {' and '.join(read)} "
                        "would be read. Write each list to a file of its own.")


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
    known: dict[Any, int] = {}
    for number, image in enumerate(value["images"], 1):
        if image["id"] in known:
            raise DataError(f"{path}: images[{number}]: id {image['id']!r} was there before, at "
                            f"images[{known[image['id']]}]; captions could belong to either.")
        known[image["id"]] = number
    for number, annotation in enumerate(value["annotations"], 1):
        if annotation["image_id"] not in known:
            name = annotation["image_id"]
            raise DataError(f"{path}: annotations[{number}]: image_id {name!r} is not among 'images'.")
