"""Readers of prediction files and annotation files, so that predictions can be scored without a run.

Predictions are files of an evaluation, or files in the official results format, as a JSON list or JSON lines.
Annotations are official COCO captions files and those of VQA, TextVQA, VizWiz and ScienceQA.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lavis_lite.errors import DataError, did_you_mean, listed
from lavis_lite.metrics.vqa import Id, Truth, confidences_of

IDS = ("question_id", "questionId", "image_id", "id", "image")
TEXTS = ("answer", "caption", "prediction", "text")


def read_predictions(path: str | Path) -> dict[Id, str]:
    """A results file, a JSON list (or, as .jsonl, lines) of rows with an id and a text -> id -> text.

    Raises:
        DataError: the file is missing or is not such a list, a row lacks its id or its text, or an id occurs twice.
    """
    rows = _json_lines(Path(path)) if Path(path).suffix == ".jsonl" else _json(Path(path))
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
    pairs = [(_value(row, IDS, int | str, f"{where}:{index}"), _value(row, TEXTS, str, f"{where}:{index}"))
             for index, row in enumerate(rows, 1)]
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {len(twice)} ids have more than one prediction: {listed([*map(repr, twice)])}; one "
                        "per id can be scored.")
    return dict(pairs)


def read_references(path: str | Path) -> tuple[dict[Id, list[str]], dict[Id, str]]:
    """An official COCO captions file -> (image id -> captions, image id -> NoCaps' domain where the images have one).

    Raises:
        DataError: the file is missing, or is not such a file.
    """
    value = _json(Path(path))
    notes = value.get("annotations") if isinstance(value, dict) else None
    if not isinstance(notes, list):
        raise DataError(f"{path}: must be a COCO captions file, with 'images' and 'annotations'.")
    captions: dict[Id, list[str]] = {}
    for index, row in enumerate(notes, 1):
        name = _value(row, ("image_id",), int | str, f"{path}: annotations[{index}]")
        captions.setdefault(name, []).append(_value(row, ("caption",), str, f"{path}: annotations[{index}]"))
    images = value.get("images", [])
    if not isinstance(images, list):
        raise DataError(f"{path}: field 'images' must be a list of objects, not {type(images).__name__}.")
    return captions, {_value(image, ("id",), int | str, f"{path}: images[{index}]"):
                      _value(image, ("domain",), str, f"{path}: images[{index}]")
                      for index, image in enumerate(images, 1) if isinstance(image, dict) and image.get("domain")}


def read_truths(path: str | Path, split: str | None = None) -> dict[Id, Truth]:
    """Right answers of a published file -> question id -> its answers, types, confidences and options.

    Supported files: official VQA annotations; TextVQA's ({"data": [...]}); VizWiz' list, with the image as the
        question's id, as in VizWiz' results files; ScienceQA's problems.json, an object of questions by number.

    Args:
        path: the file.
        split: only questions with this value of `split`; None: all.

    Raises:
        DataError: the file is missing, or is not such a file; a question is there twice.
    """
    notes = _notes(_json(Path(path)))
    if notes is None:
        raise DataError(f"{path}: must be official VQA annotations, an object with 'annotations', or their list; "
                        "TextVQA's file with 'data'; or ScienceQA's problems.json.")
    found: dict[Id, Truth] = {}
    for where, row in notes:
        if split is not None and isinstance(row, dict) and row.get("split") != split:
            continue
        name = _value(row, ("question_id", "image"), int | str, f"{path}: {where}")
        if name in found:
            raise DataError(f"{path}: {where}: question_id {name!r} was there before.")
        found[name] = _truth(row, f"{path}: {where}")
    return found


def _notes(value: Any) -> list[tuple[str, Any]] | None:
    """(location, row) of each question; None if the file has no annotations."""
    if isinstance(value, dict) and not isinstance(value.get("annotations", value.get("data")), list):
        if not value or not all(isinstance(row, dict) and "choices" in row for row in value.values()):
            return None
        return [(f"question {name!r}", {"question_id": name, **row}) for name, row in value.items()]
    member = "annotations" if isinstance(value, dict) and "annotations" in value else "data"
    rows = value.get(member) if isinstance(value, dict) else value
    label = member if isinstance(value, dict) else "annotations"
    return [(f"{label}[{index}]", row) for index, row in enumerate(rows, 1)] if isinstance(rows, list) else None


def _truth(row: Mapping[str, Any], where: str) -> Truth:
    types = str(row.get("question_type", "")), str(row.get("answer_type", ""))
    if "choices" in row and "answers" not in row:
        return _choice(row, where, str(row.get("subject", types[0])), types[1])
    given = _value(row, ("answers",), list, where)
    answers: list[Any] = [one.get("answer") if isinstance(one, dict) else one for one in given]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{where}: field 'answers' must be a list of answers.")
    return Truth(answers, *types, confidences_of(given) or ())


def _choice(row: Mapping[str, Any], where: str, question_type: str, answer_type: str) -> Truth:
    choices, label = _value(row, ("choices",), list, where), _value(row, ("answer",), int, where)
    if not 0 <= label < len(choices) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{where}: field 'answer' is {label}, not the index of one of its {len(choices)} choices.")
    return Truth([choices[label]], question_type, answer_type, choices=choices, label=label)


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
    return _decoded(path, json.loads)


def _json_lines(path: Path) -> list[Any]:
    lines: list[Any] = _decoded(path, lambda text: [json.loads(line) for line in text.split("\n") if line.strip()])
    return lines


def _decoded(path: Path, decode: Callable[[str], Any]) -> Any:
    try:
        return decode(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
