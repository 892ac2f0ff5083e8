"""Annotation files of every format -> raw rows with their row numbers, one at a time."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.delimited import table_rows
from lavis_lite.datasets.annotations.text_files import (
    AUTO,
    DECODER,
    ONE_BY_ONE,
    BadRow,
    Cursor,
    FileFormat,
    NumberedRow,
    decoded,
    decoded_lines,
    json_error,
    json_object,
    lines_of,
    read_text,
)
from lavis_lite.datasets.files import columnar
from lavis_lite.datasets.files.locate import COLUMNAR, TEXT_FILES, is_columnar
from lavis_lite.errors import DataError

__all__ = ["SUFFIXES", "BadRow", "FileFormat", "NumberedRow", "check_suffix", "read_folder", "read_rows"]

SUFFIXES = (*TEXT_FILES, *COLUMNAR)
LISTS = ("data", "annotations", "rows", "samples", "items", "examples", "entries", "instances", "records", "train",
         "val", "test")
"""members that hold the rows of a file that is an object, if it has only one list"""
COMPANIONS = ("info", "license", "licenses", "categories", "version", "meta", "metadata")
"""members beside the rows that say nothing about single rows"""
BLOCK = 1024
"""lines that are decoded at once"""
_PANDAS = " Convert it, for example with: python -c \"import pandas; pandas.{}(...).to_json('rows.jsonl', {})\""
_EXCEL = _PANDAS.format("read_excel", "orient='records', lines=True")
_CONVERT = {
    ".xlsx": _EXCEL, ".xls": _EXCEL, ".pkl": _PANDAS.format("read_pickle", "orient='records', lines=True"),
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
    if is_columnar(path):
        return columnar.column_rows(path, file)
    content, suffix = read_text(path, form.encoding), path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return table_rows(path, content, form)
    cursor = Cursor(path, content)
    if suffix == ".json":
        return cursor.whole_list() if cursor.mark() == "[" else _object_rows(path, content)
    if cursor.mark() == "[":
        raise DataError(f"{path}: begins with a list, but has one object per line by its name. Name it .json if it is "
                        "one list of objects.")
    return _line_rows(content)


def check_suffix(path: Path) -> None:
    """Check that a file has a known format.

    Raises:
        DataError: names the suffix and the known ones.
    """
    if path.suffix.lower() not in SUFFIXES:
        ending = f"not in {path.suffix!r}" if path.suffix else "and this name has no ending"
        raise DataError(f"{path}: annotation files end in {', '.join(SUFFIXES)}, {ending}."
                        f"{_CONVERT.get(path.suffix.lower(), '')}")


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


def _line_rows(content: str) -> Iterator[NumberedRow]:
    lines, first, rest = lines_of(content), 1, 0
    while block := list(itertools.islice(lines, BLOCK)):
        rows = None if rest else decoded_lines(block)
        yield from enumerate(rows, first) if rows else _one_by_one(block, first)
        first, rest = first + len(block), 0 if rows else (rest or ONE_BY_ONE) - 1


def _one_by_one(lines: list[str], first: int) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines, first):
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
    # "images" alone: those of a split without published captions
    for read in (("images", "annotations"), ("images",), *((name,) for name in LISTS)):
        if all(isinstance(value.get(name), list) for name in read):
            _refuse_others(path, value, read)
            lists = [value[name] for name in read]
            return _coco_rows(path, *lists) if "images" in read else enumerate(lists[0], 1)
    raise DataError(f"{path}: must be a list of objects, or a COCO captions file with 'images' and 'annotations'; it "
                    f"is an object with {', '.join(map(repr, list(value)[:6])) or 'nothing'}.")


def _refuse_others(path: Path, value: dict[str, Any], read: tuple[str, ...]) -> None:
    """Check that no list of rows would be ignored."""
    others = [name for name, rows in value.items() if name not in (*COMPANIONS, *read) and isinstance(rows, list)
              and any(isinstance(row, dict) for row in rows)]
    if others:
        raise DataError(f"{path}: has rows in {', '.join(map(repr, [*read, *others]))}; only {' and '.join(read)} "
                        "would be read. Write each list to a file of its own.")


def _coco_rows(path: Path, images: list[Any], annotations: list[Any] | None = None) -> Iterator[NumberedRow]:
    """Captions joined with their images through pycocotools' index, grouped by image in the order of `images`."""
    _check_coco(path, images, annotations or [])
    facts = [{**image, **({"image": image["file_name"]} if "file_name" in image else {}), "image_id": image["id"]}
             for image in images]
    if annotations is None:
        yield from enumerate(facts, 1)
        return
    from pycocotools.coco import COCO  # imported here: only files of this layout need it

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        index = COCO()
        index.dataset = {"images": images, "annotations": annotations}
        index.createIndex()
    numbers = {id(annotation): number for number, annotation in enumerate(annotations, 1)}
    for row in facts:
        for annotation in index.imgToAnns.get(row["image_id"], []):
            yield numbers[id(annotation)], {**row, **annotation, "image_id": row["image_id"]}


def _check_coco(path: Path, images: list[Any], annotations: list[Any]) -> None:
    """Check the ids, which pycocotools answers with a bare KeyError or ignores."""
    known: dict[Any, int] = {}
    for kind, items, keys in (("images", images, ("id",)), ("annotations", annotations, ("id", "image_id"))):
        for number, item in enumerate(items, 1):
            where = f"{path}: {kind}[{number}]"
            bad = [key for key in keys if not isinstance(item, dict) or not isinstance(item.get(key), int | str)]
            if bad:
                raise DataError(f"{where}: field {bad[0]!r} is missing, or neither a number nor text.")
            name = item[keys[-1]]
            if kind == "annotations" and name not in known:
                raise DataError(f"{where}: image_id {name!r} is not among 'images'.")
            if kind == "images" and known.setdefault(name, number) != number:
                raise DataError(f"{where}: id {name!r} was there before, at images[{known[name]}]; captions could "
                                "belong to either.")
