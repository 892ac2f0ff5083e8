"""Files of predictions and of right answers -> what the metrics take, so that a file can be scored without a run.

Predictions are the files that an evaluation writes, or anybody's in the official results format; right answers are
official COCO captions files and official VQA annotations.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lavis_lite.errors import DataError, did_you_mean
from lavis_lite.metrics.vqa import Id, Truth

IDS = ("question_id", "questionId", "image_id", "id", "image")
TEXTS = ("answer", "caption", "prediction")
MOST_SHOWN = 5


def read_predictions(path: str | Path) -> dict[Id, str]:
    """A results file, a JSON list of rows with an id and a text -> id -> text.

    Raises:
        DataError: the file is missing or is no such list, a row lacks its id or its text, or an id occurs twice.
    """
    rows = _json(Path(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be a JSON list of predictions, such as {{'image_id': 1, 'caption': '...'}}.")
    return by_id(rows, str(path))


def by_id(rows: Iterable[Any], where: str = "predictions") -> dict[Id, str]:
    """Rows of predictions -> id -> text, in their order.

    Args:
        rows: objects with one of IDS and one of TEXTS.
        where: their file, for messages.

    Raises:
        DataError: as `read_predictions`.
    """
    pairs = [(_value(row, IDS, int | str, f"{where}:{place}"), _value(row, TEXTS, str, f"{where}:{place}"))
             for place, row in enumerate(rows, 1)]
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {len(twice)} ids have more than one prediction: {shown(twice)}; one per id can be "
                        "scored.")
    return dict(pairs)


def read_references(path: str | Path) -> tuple[dict[Id, list[str]], dict[Id, str]]:
    """An official COCO captions file -> (image id -> captions, image id -> NoCaps' domain where the images have one).

    Raises:
        DataError: the file is missing, or is no such file.
    """
    value = _json(Path(path))
    notes = value.get("annotations") if isinstance(value, dict) else None
    if not isinstance(notes, list):
        raise DataError(f"{path}: must be a COCO captions file, with 'images' and 'annotations'.")
    captions: dict[Id, list[str]] = {}
    for place, row in enumerate(notes, 1):
        name = _value(row, ("image_id",), int | str, f"{path}: annotations[{place}]")
        captions.setdefault(name, []).append(_value(row, ("caption",), str, f"{path}: annotations[{place}]"))
    images = [image for image in value.get("images", []) if isinstance(image, dict)]
    return captions, {image["id"]: image["domain"] for image in images if image.get("domain")}


def read_truths(path: str | Path) -> dict[Id, Truth]:
    """Official VQA annotations -> question id -> its answers and types.

    Raises:
        DataError: the file is missing, or is no such file; a question is there twice.
    """
    value = _json(Path(path))
    notes = value.get("annotations") if isinstance(value, dict) else value
    if not isinstance(notes, list):
        raise DataError(f"{path}: must be official VQA annotations, an object with 'annotations', or their list.")
    found: dict[Id, Truth] = {}
    for place, row in enumerate(notes, 1):
        where = f"{path}: annotations[{place}]"
        name = _value(row, ("question_id",), int | str, where)
        given = _value(row, ("answers",), list, where)
        answers: list[Any] = [one.get("answer") if isinstance(one, dict) else one for one in given]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{where}: field 'answers' must be a list of answers.")
        if name in found:
            raise DataError(f"{where}: question_id {name!r} was there before.")
        found[name] = Truth(answers, str(row.get("question_type", "")), str(row.get("answer_type", "")))
    return found


def shown(ids: list[Any]) -> str:
    """The first ids of many, for messages."""
    return ", ".join(map(repr, ids[:MOST_SHOWN])) + (", ..." if len(ids) > MOST_SHOWN else "")


def _value(row: Any, keys: tuple[str, ...], kind: Any, where: str) -> Any:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be an object of named fields, not {type(row).__name__}.")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise DataError(f"{where}: has no {' or '.join(map(repr, keys))}; {did_you_mean(keys[0], map(str, row))}")
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise DataError(f"{where}: field {key!r} is {row[key]!r}, which is neither a number nor text."
                        if keys == IDS else f"{where}: field {key!r} is of the wrong kind: {row[key]!r}.")
    return row[key]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as fault:
        raise DataError(f"{path}: there is no such file.") from fault
    except (OSError, ValueError, RecursionError) as fault:
        raise DataError(f"{path}: cannot be read as JSON ({fault}).") from fault
