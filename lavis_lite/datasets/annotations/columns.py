"""Columns of a user's file: guessed by their names, or named by a section and then required to be there."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lavis_lite.datasets.annotations.readers import read_rows
from lavis_lite.datasets.annotations.text_files import AUTO, BadRow, FileFormat
from lavis_lite.datasets.files.locate import SPLITS
from lavis_lite.errors import DataError

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
