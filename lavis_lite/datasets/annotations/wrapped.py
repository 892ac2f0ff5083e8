"""Rows of a JSON file that is an object: official COCO captions, or a list of rows with facts about it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.json_files import NumberedRow
from lavis_lite.datasets.annotations.json_text import DECODER, json_fault
from lavis_lite.errors import DataError

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
    except (ValueError, RecursionError) as fault:
        lines = isinstance(fault, json.JSONDecodeError) and fault.msg == "Extra data"
        hint = " With one object per line, name it .jsonl." if lines else ""
        raise DataError(f"{path}: {json_fault(fault)}.{hint}") from fault
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
