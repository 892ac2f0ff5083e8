"""Predictions on a split without labels, in the format of the server that scores them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Server = Literal["plain", "vqa", "textvqa", "gqa", "vizwiz", "aokvqa", "hatefulmemes", "visdial", "coco", "nocaps"]
NAMES: dict[str, str] = {"vqa": "VQA", "textvqa": "TextVQA", "gqa": "GQA", "vizwiz": "VizWiz", "aokvqa": "A-OKVQA",
                         "hatefulmemes": "Hateful Memes", "visdial": "Visual Dialog", "coco": "COCO captions",
                         "nocaps": "NoCaps"}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_COLUMNS: dict[str, tuple[str, ...]] = {"hatefulmemes": ("id", "proba", "label")}
"""of servers that take a table"""


@dataclass(frozen=True)
class Submission:
    """Predictions for a server.

    Attributes:
        server: defines the format; plain: rows of this package.
        content: rows, one per id; or an object of them by id (A-OKVQA).
        name: the file's name if the server prescribes one; "": the usual name of predictions.
    """

    server: Server
    content: Sequence[Row] | Mapping[str, Any]
    name: str = ""

    @property
    def suffix(self) -> str:
        """Ending of the file's name."""
        return ".csv" if self.server in _COLUMNS else ".json"

    def format_hint(self) -> str:
        """The format of the file, as the end of a sentence."""
        if self.server == "plain":
            return "; each row of the file has question_id, answer, choice and scores; no server takes this format"
        return f"; the file has the format of the {NAMES[self.server]} server"

    def text(self) -> str:
        """The file's content."""
        if self.server in _COLUMNS:
            assert not isinstance(self.content, Mapping), self.server
            return _table(self.content, _COLUMNS[self.server])
        return lines(self.content)


def lines(content: Sequence[Row] | Mapping[str, Any]) -> str:
    """JSON with one row per line."""
    if isinstance(content, Mapping):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in content.items()) + "\n}\n"
    return "[\n" + ",\n".join(json.dumps(row) for row in content) + "\n]\n"


def _table(content: Sequence[Row], columns: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: as_cell(value) for key, value in row.items()} for row in content)
    return file.getvalue()


def as_cell(value: Any) -> Any:
    """A value as a table cell; a text that a spreadsheet would read as a formula gets an apostrophe in front.

    Numbers, and texts that are numbers (`-0.5`), stay unchanged because a server reads them.
    """
    if not isinstance(value, str) or _is_number(value):
        return value
    text = value.replace("\r", " ")  # a carriage return would end the row
    return f"'{text}" if value.lstrip(" ").startswith(FORMULA_STARTS) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and text == text.strip() and "_" not in text
    except ValueError:
        return False


def answer_row(server: Server, name: Any, answer: str, image: str) -> Row:
    """One answer to a question for the servers of VQA, TextVQA, GQA and VizWiz.

    Args:
        server: one of these four.
        name: the question's id.
        answer: the predicted text.
        image: file name of its picture, by which VizWiz' server identifies questions.
    """
    if server == "gqa":
        return {"questionId": str(name), "prediction": answer}
    if server == "vizwiz":
        return {"image": image.rpartition("/")[2], "answer": answer}
    return {"question_id": name, "answer": answer}
