"""Files of dialogues about images -> questions, each with the dialogue before it.

VisDial v1.0's file has rounds that refer to lists of questions and answers. AVSD's has texts in the rounds:
{dialogs: [{image_id, caption, dialog: [{question, answer}, ...]}]}. LLaVA-Instruct has lists
{image, id, conversations: [{from: human, value}, ...]}. A dialogue is held once, however many questions it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lavis_lite.datasets.annotations.chats import FLAGS
from lavis_lite.datasets.annotations.kinds import describe, file_name, identifier, text
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.readers import of_split, read_rows
from lavis_lite.datasets.annotations.rows import Row, RowErrors, RowTable, made_rows, numbered_rows
from lavis_lite.datasets.annotations.text_files import read_members
from lavis_lite.errors import DataError

SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
"""speaker -> the parity of the turn"""
MARK = "<image>"
UNDISCLOSED = "__UNDISCLOSED__"
"""AVSD's answer to the question that is to be answered"""
_MARK = re.compile(rf"\s*{MARK}\s*")
OTHER_LAYOUTS = ("messages", "query", "turns", "dialog", "dialogue")
"""columns in which other layouts have their turns"""
WRITE = ('write them as "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]')
T = TypeVar("T")
Texts = tuple[RowTable, RowTable]
"""(questions, answers) of a VisDial file"""


class TurnTable(RowTable):
    """Questions of dialogues as rows, put together while they are looked at.

    Rows: image, question, question_id, image_id, history (the turns before, "" at first), caption if the dialogue has
    one; answers (one) and counts if it is answered; candidates and label (the right one's index) if it is to be ranked;
    relevance, one number per candidate, for rounds that `relevance` has.

    Args:
        dialogues: rows {image, image_id, name, caption, turns: [[question, answer, label, candidates], ...], asked:
            numbers of the turns that are samples}; texts, or their numbers in `texts`.
        texts: those of VisDial; None: the turns have texts.
        turn: a question and its answer in the history, with two `{}`.
        last: only the last of a dialogue's asked turns is a row.
    """

    def __init__(self, dialogues: RowTable, texts: Texts | None, turn: str, last: bool = False) -> None:
        self.dialogues, self.texts, self.turn, self.first_asked = dialogues, texts, turn, -1 if last else 0
        self.files, self.kinds = dialogues.files, {}
        self.relevance: Mapping[str, list[float]] = {}
        counts = [len(row["asked"][self.first_asked:]) for row in dialogues.skim()]
        self._turns = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._turns[-1]) if len(self._turns) else 0

    def _find(self, index: int) -> tuple[int, int]:
        """(dialogue, which of its asked turns) of a row."""
        dialogue = int(np.searchsorted(self._turns, index, side="right"))
        return dialogue, index - (int(self._turns[dialogue - 1]) if dialogue else 0)

    def origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row's dialogue."""
        return self.dialogues.origin(self._find(index)[0])

    def content_hash(self) -> str:
        """Hash of the dialogues, their texts, and the form of the history."""
        return " ".join([*(table.content_hash() for table in (self.dialogues, *(self.texts or ()))), self.turn,
                         *(["last"] if self.first_asked else [])])

    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(table.nbytes() for table in (self.dialogues, *(self.texts or ()))) + self._turns.nbytes

    def row(self, index: int) -> Row:
        """One question."""
        dialogue, number = self._find(index)
        row = self.dialogues[dialogue]
        turn = row["asked"][self.first_asked:][number]
        question, answer, label, candidates = row["turns"][turn]
        history = "\n".join(self._in_history(*earlier[:2]) for earlier in row["turns"][:turn])
        found = self._question(row, turn, question, answer, history)
        if candidates is not None:
            found["candidates"] = [self._text(candidate, 1) for candidate in candidates]
            if found["question_id"] in self.relevance:
                found["relevance"] = self.relevance[found["question_id"]]
        return found if label is None else {**found, "label": label}

    def _question(self, row: Row, turn: int, question: str | int, answer: str | int | None, history: str) -> Row:
        """One turn of a dialogue as a row."""
        found = {"image": row["image"], "image_id": row["image_id"], "question": self._text(question, 0),
                 "question_id": f"{row['name']}-{turn + 1}", "history": history, "caption": row.get("caption", "")}
        return found if answer is None else {**found, "answers": [self._text(answer, 1)], "counts": [1]}

    def skim(self) -> Iterator[Row]:
        """All rows in order, without candidates and relevance; a dialogue and its texts are decoded once."""
        for row in self.dialogues.skim():
            history: list[str] = []
            asked = set(row["asked"][self.first_asked:])
            for turn, (question, answer, *_) in enumerate(row["turns"]):
                if turn in asked:
                    yield self._question(row, turn, question, answer, "\n".join(history))
                history.append(self._in_history(question, answer))

    def _text(self, value: str | int, which: int) -> str:
        if isinstance(value, str) or self.texts is None:
            return str(value)
        found: str = self.texts[which][value]["text"]
        return found if which or found.endswith("?") else found + "?"  # VisDial's questions come without

    def _in_history(self, question: str | int, answer: str | int | None) -> str:
        before, between, after = self.turn.split("{}")
        return f"{before}{self._text(question, 0)}{between}{'' if answer is None else self._text(answer, 1)}{after}"


def read_dialogues(paths: Sequence[Path], layout: Layout, training: bool, turn: str, last: bool = False) -> TurnTable:
    """The questions of a split.

    Args:
        paths: one file of VisDial or AVSD, or lists of conversations.
        layout: the image's column or pattern, and which rows count; the files fix the rest.
        training: questions with an answer are samples, candidates are left out; else those with candidates, or with
            an answer if the split has no candidates.
        turn: see `TurnTable`.
        last: only the last of these questions of each dialogue.

    Raises:
        DataError: as `read_questions`.
    """
    errors = RowErrors()
    found: tuple[RowTable, Texts] | None = None
    if len(paths) == 1 and paths[0].suffix.lower() == ".json":
        found = _read_visdial(paths[0], layout, training, errors)
    if found is None:
        rows = numbered_rows(paths, layout.form)
        dialogues, texts = RowTable(conversations(rows, paths, layout, errors), paths), None
    else:
        dialogues, texts = found
    errors.stop_if_any()
    table = TurnTable(dialogues, texts, turn, last)
    table.left_out = errors.left_out
    if not len(table):
        lacking = f"; rows that lack what `required` names: {errors.left_out}" if errors.left_out else ""
        raise DataError(f"{', '.join(map(str, paths))}: no dialogues{of_split(layout.keep)}{lacking}.")
    return table


def _image_of(row: Row, layout: Layout) -> str:
    """The image of a dialogue, by the pattern or the row's own column; a ValueError with a clause if it has none."""
    if layout.pattern is not None:
        return layout.pattern.fill({"split": layout.split, **row})
    column = layout.name("image")
    if row.get(column) in (None, "", []):
        raise ValueError(f"field {column!r} is missing or empty; `required: [{column}]` leaves such rows out")
    return _checked(row, column, file_name)


def _checked(row: Row, column: str, kind: Callable[[Any], T]) -> T:
    """A value of a row; a ValueError with a clause that names the column."""
    try:
        return kind(row[column])
    except ValueError as error:
        raise ValueError(f"field {column!r} {error}") from error


def _id_of(row: Row, column: str, number: int) -> int | str:
    """The id of a dialogue; without one, its number in the file."""
    return number if row.get(column) in (None, "") else _checked(row, column, identifier)


# --- VisDial v1.0 ----------------------------------------------------------------------------------------------------
def read_relevance(path: Path) -> dict[str, list[float]]:
    """Dense annotations [{image_id, round_id, gt_relevance: [...]}] -> relevances by question_id "<image>-<round>".

    Raises:
        DataError: a row is of another kind; the first is named.
    """
    found = {}
    for number, row in read_rows(path):
        image, turn, values = (row.get(key) if isinstance(row, dict) else None
                               for key in ("image_id", "round_id", "gt_relevance"))
        if image is None or turn is None or not isinstance(values, list) or not all(
                isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise DataError(f"{path}:{number}: must have image_id, round_id and gt_relevance, a list of numbers.")
        found[f"{image}-{turn}"] = [float(value) for value in values]
    return found


def _read_visdial(path: Path, layout: Layout, training: bool, errors: RowErrors) -> tuple[RowTable, Texts] | None:
    """(dialogues, their texts) of a VisDial file; None if it is not such an object."""
    tables = {name: RowTable([], [path]) for name in ("questions", "answers", "dialogs")}
    is_visdial = False
    for member, value in read_members(path, "data", layout.form):
        if member in tables and not isinstance(value, dict):
            is_visdial = True
            rows = (_visdial_dialogues(path, value, layout, training, errors) if member == "dialogs" else
                    _visdial_texts(path, value, member, errors))
            tables[member] = RowTable(rows, [path])
    dialogues, texts = tables["dialogs"], (tables["questions"], tables["answers"])
    for index, row in enumerate(dialogues.skim()):
        for question, answer, _, candidates in row["turns"]:
            if _beyond([question], texts[0]) or _beyond([answer, *(candidates or [])], texts[1]):
                errors.add(dialogues.location(index), f"refers to a text that the file has not (it has "
                           f"{len(texts[0])} questions, {len(texts[1])} answers)")
                break
    return (dialogues, texts) if is_visdial else None


def _beyond(numbers: Iterable[str | int | None], texts: RowTable) -> bool:
    """Whether any of the numbers names no text; turns may be texts themselves."""
    return any(isinstance(number, int) and number >= len(texts) for number in numbers)


def _visdial_texts(path: Path, rows: Any, member: str, errors: RowErrors) -> Iterator[tuple[int, int, Row]]:
    for number, value in rows:
        if not isinstance(value, str):
            errors.add(f"{path}: {member}[{number}]", f"must be text, not {describe(value)}")
        yield 0, number, {"text": value}


def _visdial_dialogues(path: Path, rows: Any, layout: Layout, training: bool,
                       errors: RowErrors) -> Iterator[tuple[int, int, Row]]:
    seen: dict[int | str, int] = {}

    def make(_: int, number: int, row: Row) -> Row | None:
        if not layout.takes(row, errors):
            return None
        found = _visdial_dialogue(number, row, layout, training)
        first = seen.setdefault(found["name"], number)
        if first != number and not training:  # results and relevances could be of either
            raise ValueError(f"image_id {found['name']!r} was there before, at {path}:{first}")
        return found

    return made_rows(((0, number, row) for number, row in rows), [path], errors, make)


def _visdial_dialogue(number: int, row: Row, layout: Layout, training: bool) -> Row:
    if not isinstance(row.get("dialog"), list):
        raise ValueError("must be an object with 'dialog', a list of rounds")
    turns = [_round(number, turn) for number, turn in enumerate(row["dialog"], 1)]
    ranked = not training and any(turn[3] is not None for turn in turns)
    open_turns = [] if training or ranked else [index for index, turn in enumerate(turns) if turn[1] is None]
    asked = open_turns or [index for index, turn in enumerate(turns) if turn[3 if ranked else 1] is not None]
    if training:
        turns = [[question, answer, None, None] for question, answer, _, _ in turns]
    name = _id_of(row, "image_id", number)
    found = {"image": _image_of(row, layout), "image_id": name, "name": name, "turns": turns, "asked": asked}
    return {**found, "caption": _checked(row, "caption", text)} if row.get("caption") else found


def _round(number: int, turn: Any) -> list[Any]:
    """[question, answer or None, index of the right candidate or None, candidates or None] of one round."""
    given = turn if isinstance(turn, dict) else {}
    question, answer, options, label = (given.get(key) for key in ("question", "answer", "answer_options", "gt_index"))
    answer = None if answer == UNDISCLOSED else answer
    if not _is_named(question) or not (answer is None or _is_named(answer)):
        raise ValueError(f"round {number}: question and answer must be texts, or numbers of texts")
    if options is not None and not (isinstance(options, list) and all(map(_is_index, options))):
        raise ValueError(f"round {number}: answer_options must be numbers of answers")
    if label is not None and not (_is_index(label) and options is not None and label < len(options)):
        raise ValueError(f"round {number}: gt_index is {label!r}, not a place among the answer_options")
    return [question, answer, label, options]


def _is_named(value: Any) -> bool:
    """Whether it is a text, or the number of one."""
    return _is_index(value) or isinstance(value, str) and bool(value.strip())


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- LLaVA-Instruct --------------------------------------------------------------------------------------------------
def conversations(rows: Iterable[tuple[int, int, Any]], paths: Sequence[Path], layout: Layout,
                  errors: RowErrors) -> Iterator[tuple[int, int, Row]]:
    """Rows of dialogues as `TurnTable` has them.

    Args:
        rows: (file number, row number, raw row).
        paths: the files, for messages.
        layout: what an image is called, and which rows count.
        errors: receives rows that cannot be read, and counts those left out.
    """
    def make(file: int, number: int, row: Row) -> Row | None:
        if not layout.takes(row, errors):
            return None
        turns = _pairs(row)
        return {"image": _image_of(row, layout), "image_id": _id_of(row, "id", number), "turns": turns,
                "name": f"{file}-{number}" if file else str(number), "asked": list(range(len(turns)))}

    return made_rows(rows, paths, errors, make)


def _pairs(row: Row) -> list[list[Any]]:
    """[question, answer, None, None] of every two turns; a ValueError with a clause if they are not that."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        other = next((name for name in OTHER_LAYOUTS if name in row), None)
        raise ValueError(f"has its turns in {other!r}; {WRITE}" if other is not None else
                         "must be an object with 'conversations', a list of turns")
    if not turns or row.get("system"):
        raise ValueError("conversations: has no turns" if not turns else
                         "'system' is not read here; read the file with the builder chat")
    found = [_turn_text(number, turn) for number, turn in enumerate(turns)]
    if len(found) % 2:
        raise ValueError(f"conversations[{len(found)}]: is a question without an answer; take the last turn out")
    return [[question, answer, None, None] for question, answer in zip(found[::2], found[1::2], strict=True)]


def _turn_text(number: int, turn: Any) -> str:
    where = f"conversations[{number + 1}]"
    if not isinstance(turn, dict) or "from" not in turn:
        other = ", not as {role, content}" if isinstance(turn, dict) and "role" in turn else ""
        raise ValueError(f"{where}: must be {{from, value}}{other}")
    _check_speaker(number, turn["from"], where)
    value = turn.get("value")
    if not isinstance(value, str):
        raise ValueError(f"{where}: value must be text, not {describe(value)}")
    unread = [key for key in FLAGS if turn.get(key) not in (None, 1)] + [MARK] * (MARK in value)
    if unread and number % 2:
        raise ValueError(f"{where}: an answer's {unread[0]} is not read here; read the file with the builder chat")
    if value.count(MARK) > 1:
        raise ValueError(f"{where}: value has {value.count(MARK)} marks {MARK}; a row has one image")
    try:
        return text(without_mark(value))
    except ValueError as error:
        raise ValueError(f"{where}: value {error}") from error


def _check_speaker(number: int, speaker: Any, where: str) -> None:
    if speaker == "system":
        raise ValueError(f"{where}: is a system turn, which is not read; take it out, and put its text into the "
                         "section's `instruction`")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"{where}: must be from one of {', '.join(SPEAKERS)}, not {speaker!r}")
    if SPEAKERS[speaker] == number % 2:
        return
    if number == 0:
        raise ValueError(f"{where}: is from {speaker!r}, but a dialogue begins with a question; take the turn out")
    raise ValueError(f"{where}: is from {speaker!r} again; questions and answers take turns: join the two turns")


def without_mark(value: str) -> str:
    """A text without LLaVA's mark of the image, which comes before every text, and without the gap that it leaves."""
    return _MARK.sub(lambda found: "\n" if "\n" in found[0] else " ", value).strip()
