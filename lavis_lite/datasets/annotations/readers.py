"""Annotation files -> raw rows with their row numbers, one at a time.

Byte-order marks and the line ends of all systems are taken. Other line separators, such as U+2028, are part of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.delimited import table_rows
from lavis_lite.datasets.annotations.json_files import (
    DECODER,
    BadRow,
    NumberedRow,
    json_error,
    json_object,
    list_rows,
    object_members,
    object_rows,
    read_folder,
    skip_space,
)
from lavis_lite.datasets.annotations.text_files import AUTO, FileFormat, lines_of, read_text
from lavis_lite.errors import DataError

__all__ = ["SUFFIXES", "BadRow", "FileFormat", "NumberedRow", "check_suffix", "json_object", "read_folder",
           "read_members", "read_rows"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


def read_rows(path: Path, form: FileFormat = AUTO) -> Iterator[NumberedRow]:
    """Rows of one file, by its suffix: (row number, row).

    `.json` is a list of objects, an object that wraps one, or an official COCO captions file (`images` +
    `annotations`: one row per caption with image, caption, image_id); `.jsonl` has one object per line; `.csv` and
    `.tsv` have a header line. The row number is the place in the list, from 1, or the line in which the row begins. A
    row that cannot be read comes as a `BadRow`.

    Args:
        path: the file.
        form: how it is written, where that is known.

    Raises:
        DataError: missing, unreadable, empty or not in the format of its suffix; names file and row.
    """
    check_suffix(path)
    content, suffix = read_text(path, form.encoding), path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return table_rows(path, content, form)
    if suffix == ".json":
        return list_rows(path, content) if content[skip_space(content, 0)] == "[" else object_rows(path, content)
    return _line_rows(path, content)


def check_suffix(path: Path) -> None:
    """Refuse files of formats that are not read.

    Raises:
        DataError: names the suffix and those that are read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: annotation files end in {', '.join(SUFFIXES)}, not in {path.suffix or 'nothing'!r}."
                        f"{_CONVERT.get(path.suffix.lower(), '')}")


_PANDAS = " Convert it, for example with: python -c \"import pandas; pandas.{}(...).to_json('rows.jsonl', {})\""
_CONVERT = {suffix: _PANDAS.format(reader, "orient='records', lines=True") for suffix, reader in
            ((".parquet", "read_parquet"), (".arrow", "read_feather"), (".feather", "read_feather"),
             (".xlsx", "read_excel"), (".xls", "read_excel"), (".pkl", "read_pickle"))}


def read_members(path: Path, within: str | None = None, form: FileFormat = AUTO) -> Iterator[tuple[str, Any]]:
    """Members of a JSON file that is an object, (name, value); see `json_files.object_members`.

    A file of another layout is one member "" of rows.

    Raises:
        DataError: as `read_rows`.
    """
    content = read_text(path, form.encoding) if path.suffix.lower() == ".json" else ""
    if content and content[skip_space(content, 0)] == "{":
        yield from object_members(path, content, within)
    else:
        yield "", read_rows(path, form)


def _line_rows(path: Path, content: str) -> Iterator[NumberedRow]:
    if content[skip_space(content, 0)] == "[":
        raise DataError(f"{path}: begins with a list, but has one object per line by its name. Name it .json if it is "
                        "one list of objects.")
    return _objects(content)


def _objects(content: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(lines_of(content), 1):
        if not line.strip():
            continue
        row: Any
        try:
            row = DECODER.decode(line.strip(" \t"))
        except (ValueError, RecursionError) as error:
            row = BadRow(json_error(error))
        yield number, row
