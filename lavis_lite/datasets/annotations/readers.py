"""Annotation files of every format -> raw rows with their row numbers, one at a time; and what their columns hold."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
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
    blocks_of,
    decoded,
    decoded_lines,
    json_error,
    json_object,
    lines_of,
    read_text,
)
from lavis_lite.datasets.files import columnar
from lavis_lite.datasets.files.locate import COLUMNAR, SPLITS, TEXT_FILES, is_columnar
from lavis_lite.errors import DataError, counted, listed

__all__ = ["KNOWN", "SUFFIXES", "BadRow", "Columns", "FileFormat", "InSplit", "NumberedRow", "check_suffix",
           "guess_columns", "of_split", "read_folder", "read_rows", "split_values"]

SUFFIXES = (*TEXT_FILES, *COLUMNAR)
LISTS = ("data", "annotations", "rows", "samples", "items", "examples", "entries", "instances", "records", "train",
         "val", "test")
"""members that hold the rows of a file that is an object, if it has only one list"""
MOST_SEEN = 100
"""values of a column that are counted"""
COMPANIONS = ("info", "license", "licenses", "categories", "version", "meta", "metadata")
"""members beside the rows that say nothing about single rows"""
_PANDAS = (" Convert it, for example with: python -c \"import pandas; pandas.{}(...).to_json('rows.jsonl', "
           "orient='records', lines=True)\"")
_CONVERT = {
    ".xlsx": _PANDAS.format("read_excel"), ".xls": _PANDAS.format("read_excel"), ".pkl": _PANDAS.format("read_pickle"),
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
    first, rest = 1, 0
    for block in blocks_of("\n".join(lines_of(content)) if "\r" in content else content):
        rows = None if rest else decoded_lines(block)
        yield from enumerate(rows, first) if rows else _one_by_one(block.split("\n"), first)
        first, rest = first + block.count("\n") + 1, 0 if rows else (rest or ONE_BY_ONE) - 1


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
                        "would be read. Write each list to a separate file.")


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
    bare = [image["id"] for image in images if image["id"] not in index.imgToAnns]
    if bare:
        warnings.warn(f"{path}: {len(bare)} of its {len(images)} images have no annotation and are left out; the first "
                      f"has the id {bare[0]!r}.", stacklevel=2)
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


# --- columns of a user's file, guessed by their names ----------------------------------------------------------------
KNOWN = {
    "image": ("image", "file_name", "filename", "image_path", "image_file", "img", "img_path", "path", "file",
              "filepath", "file_path", "image_name", "images"),
    "caption": ("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "title", "description", "alt",
                "alt_text", "txt"),
    "question": ("question", "query", "sent", "problem"),
    "answer": ("answer", "answers", "direct_answers", "answer_text", "label", "response"),
    "image_id": ("image_id", "img_id"),
    "question_id": ("question_id", "qid"),
    "split": ("split", "phase", "subset", "partition"),
    "conversations": ("conversations",),
}
"""what a column holds -> its usual names, the likeliest first; letter case does not matter"""
_ROWS = 100
"""rows in which columns are looked for"""


@dataclass(frozen=True)
class Columns:
    """The columns of a file: `present` in order of appearance, `found` by what they hold, and other candidates.

    Attributes:
        found: key of KNOWN -> name in the file.
        others: key of KNOWN -> further columns whose names would fit as well.
    """

    present: list[str]
    found: dict[str, str]
    others: dict[str, list[str]]

    def describe(self, keys: tuple[str, ...] | None = None) -> str:
        """Which column was chosen for what, and which others would fit, as one line."""
        shown = {key: name for key, name in self.found.items() if keys is None or key in keys}
        taken = ", ".join(f"{key} = {name!r}" for key, name in shown.items())
        unsure = [f"{key} could also be {' or '.join(map(repr, self.others[key]))}"
                  for key in shown if key in self.others]
        return taken + (f" ({'; '.join(unsure)})" if unsure else "")


def guess_columns(path: Path, named: Mapping[str, str] | None = None, form: FileFormat = AUTO) -> Columns:
    """The columns of a file's first rows. Training and `data check` guess alike.

    Args:
        path: a JSON, JSONL, CSV or TSV file.
        named: columns that are known: key of KNOWN -> name in the file. These are not guessed.
        form: how the file is written, if that is known.

    Raises:
        DataError: the file cannot be read.
    """
    numbered = list(itertools.islice(read_rows(path, form), _ROWS))
    rows = [row for _, row in numbered]
    if rows and all(isinstance(row, BadRow) for row in rows):  # the first one's reason says more than missing columns
        raise DataError(f"{path}:{numbered[0][0]}: {rows[0].reason}.")
    present = list(dict.fromkeys(str(column) for row in rows if isinstance(row, dict) for column in row))
    by_lower = {column.lower(): column for column in reversed(present)}
    found, others = dict(named or {}), {}
    for key, names in KNOWN.items():
        fitting = [by_lower[name] for name in names if name in by_lower]
        if key not in found and fitting:
            found[key] = fitting[0]
            if len(fitting) > 1:
                others[key] = fitting[1:]
    if "question" not in found and {"question_id", "answer"} <= found.keys() and found.get("caption") == "text":
        found["question"] = found.pop("caption")  # POPE's layout
    return Columns(present, {key: found[key] for key in KNOWN if key in found}, others)


def split_values(path: Path, column: str, form: FileFormat = AUTO) -> tuple[dict[str, str | list[str]], dict[str, int]]:
    """(split -> its value or values in a column of a file, other values -> their rows); both empty without splits.

    A column has splits if it names train, and nothing else or one more split. So rows of a test are not trained on
    where others have an unknown value.
    """
    counts = Counter(str(row.get(column)) for _, row in read_rows(path, form) if isinstance(row, dict))
    found = {split: values for split, names in SPLITS.items()
             if (values := [value for value in counts if value.strip().lower() in names])}
    others = {value: count for value, count in counts.items() if all(value not in own for own in found.values())}
    if "train" not in found or (others and len(found) == 1):
        return {}, {}
    return {split: values[0] if len(values) == 1 else values for split, values in found.items()}, others


class InSplit:
    """Whether a row belongs to a split: by a column.

    Args:
        column: of the raw row.
        values: of that column in the split's rows, as strings.
        key: of the configuration that chooses the values, for `of_split`.
    """

    def __init__(self, column: str, values: Collection[str], key: str) -> None:
        self.column, self.values, self.key = column, values, key
        self.seen: Counter[str] = Counter()

    def __call__(self, row: dict[str, Any]) -> bool:
        """Whether the row belongs to it."""
        value = str(row.get(self.column))
        if value in self.seen or len(self.seen) < MOST_SEEN:
            self.seen[value] += 1
        return value in self.values


def of_split(keep: Callable[[dict[str, Any]], bool] | None) -> str:
    """The rest of "no rows", for a split that no row belongs to: which values its column has."""
    if not isinstance(keep, InSplit):
        return " of this split" if keep else ""
    seen = listed([f"{value!r} ({counted(count, 'row')})" for value, count in keep.seen.most_common()])
    wanted = " or ".join(map(repr, sorted(keep.values)))
    return f" of this split, for which column {keep.column!r} must be {wanted}. It is {seen}: set {keep.key}"
