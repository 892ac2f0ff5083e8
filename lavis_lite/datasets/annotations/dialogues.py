"""Files of dialogues about images -> questions, each with what was said before it.

Two published layouts: VisDial v1.0's object, whose rounds refer to lists of questions and answers, and lists of
conversations as LLaVA-Instruct has them. A dialogue is held once, however many questions it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lavis_lite.datasets.annotations.conversations import conversations, image_of
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.readers import read_members, read_rows
from lavis_lite.datasets.annotations.rows import Row, RowFaults, RowTable, describe, text
from lavis_lite.errors import DataError


class TurnTable(RowTable):
    """Questions of dialogues as rows, put together while they are looked at.

    Rows: image, question, question_id, image_id, history (what was said before, "" at first), caption where the
    dialogue has one; answers (one) and counts where it is answered; candidates and label (the right one's place) where
    it is to be ranked; relevance, one number per candidate, for rounds that `relevance` has.

    Args:
        dialogues: rows {image, image_id, name, caption, turns: [[question, answer, label, candidates], ...], asked:
            numbers of the turns that are samples}; texts, or their numbers in `texts`.
        texts: (questions, answers) of VisDial; None: the turns have texts.
        turn: a question and its answer in the history, with two `{}`.
    """

    def __init__(self, dialogues: RowTable, texts: tuple[RowTable, RowTable] | None, turn: str) -> None:
        self.dialogues, self.texts, self.turn = dialogues, texts, turn
        self.files, self.kinds = dialogues.files, {}
        self.relevance: Mapping[str, list[float]] = {}
        counts = [len(dialogues[index]["asked"]) for index in range(len(dialogues))]
        self._turns = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._turns[-1]) if len(self._turns) else 0

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        dialogue = int(np.searchsorted(self._turns, index, side="right"))
        return dialogue, index - (int(self._turns[dialogue - 1]) if dialogue else 0)

    def place(self, index: int) -> str:
        """`file:row` of the dialogue."""
        return self.dialogues.place(self._find(index)[0])

    def content_hash(self) -> str:
        """Hash of the dialogues, their texts, and how what was said before is written."""
        return " ".join([*(table.content_hash() for table in (self.dialogues, *(self.texts or ()))), self.turn])

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(table.nbytes() for table in (self.dialogues, *(self.texts or ()))) + self._turns.nbytes

    def __getitem__(self, index: int) -> Row:
        dialogue, number = self._find(index)
        row = self.dialogues[dialogue]
        at = row["asked"][number]
        question, answer, label, candidates = row["turns"][at]
        said = "\n".join(self._said(*turn[:2]) for turn in row["turns"][:at])
        found = self._question(row, at, question, answer, said)
        if candidates is not None:
            found["candidates"] = [self._text(candidate, 1) for candidate in candidates]
            if found["question_id"] in self.relevance:
                found["relevance"] = self.relevance[found["question_id"]]
        return found if label is None else {**found, "label": label}

    def _question(self, row: Row, at: int, question: str | int, answer: str | int | None, said: str) -> Row:
        """One turn of a dialogue as a row, after what was said."""
        found = {"image": row["image"], "image_id": row["image_id"], "question": self._text(question, 0),
                 "question_id": f"{row['name']}-{at + 1}", "history": said, "caption": row.get("caption", "")}
        return found if answer is None else {**found, "answers": [self._text(answer, 1)], "counts": [1]}

    def skim(self) -> Iterator[Row]:
        """All rows in order, without candidates and relevance; a dialogue and its texts are decoded once."""
        for row in self.dialogues.skim():
            said: list[str] = []
            asked = set(row["asked"])
            for at, (question, answer, *_) in enumerate(row["turns"]):
                if at in asked:
                    yield self._question(row, at, question, answer, "\n".join(said))
                said.append(self._said(question, answer))

    def _text(self, value: str | int, which: int) -> str:
        if isinstance(value, str) or self.texts is None:
            return str(value)
        found: str = self.texts[which][value]["text"]
        return found if which or found.endswith("?") else found + "?"  # VisDial's questions come without

    def _said(self, question: str | int, answer: str | int | None) -> str:
        asked, _, answered = self.turn.partition("{}")[2].partition("{}")
        before = self.turn.partition("{}")[0]
        return f"{before}{self._text(question, 0)}{asked}{'' if answer is None else self._text(answer, 1)}{answered}"


def read_dialogues(paths: Sequence[Path], layout: Layout, training: bool, turn: str) -> TurnTable:
    """The questions of a split.

    Args:
        paths: one VisDial file, or lists of conversations.
        layout: the image's column or pattern, and which rows count; the rest is the files' own.
        training: questions with an answer are samples, candidates are left out; else those with candidates, or with
            an answer where the split has no candidates.
        turn: see `TurnTable`.

    Raises:
        DataError: as `read_questions`.
    """
    faults = RowFaults()
    if len(paths) == 1 and paths[0].suffix.lower() == ".json":
        reader = _VisDial(paths[0], layout, training, faults)
        if reader.found:
            return _finished(reader.dialogues, (reader.questions, reader.answers), paths, turn, faults)
    rows = ((file, place, row) for file, path in enumerate(paths) for place, row in read_rows(path, layout.form))
    return _finished(RowTable(conversations(rows, paths, layout, faults), paths), None, paths, turn, faults)


def read_relevance(path: Path) -> dict[str, list[float]]:
    """Dense annotations [{image_id, round_id, gt_relevance: [...]}] -> relevances by question_id "<image>-<round>".

    Raises:
        DataError: a row is of another kind; the first is named.
    """
    found = {}
    for place, row in read_rows(path):
        values = row.get("gt_relevance") if isinstance(row, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise DataError(f"{path}:{place}: must have image_id, round_id and gt_relevance, a list of numbers.")
        found[f"{row.get('image_id')}-{row.get('round_id')}"] = [float(value) for value in values]
    return found


def _finished(dialogues: RowTable, texts: tuple[RowTable, RowTable] | None, paths: Sequence[Path], turn: str,
              faults: RowFaults) -> TurnTable:
    faults.stop_if_any()
    table = TurnTable(dialogues, texts, turn)
    table.left_out = faults.left_out
    if not len(table):
        lacking = f"; rows that lack what `required` names: {faults.left_out}" if faults.left_out else ""
        raise DataError(f"{', '.join(map(str, paths))}: no dialogues{lacking}.")
    return table


class _VisDial:
    """`data` of a VisDial v1.0 file; `found` is false where the file is no such object."""

    def __init__(self, path: Path, layout: Layout, training: bool, faults: RowFaults) -> None:
        self.path, self.layout, self.training, self.faults = path, layout, training, faults
        self.questions = self.answers = self.dialogues = RowTable([], [path])
        members = {"questions": self._texts, "answers": self._texts, "dialogs": self._dialogues}
        self.found = False
        for member, value in read_members(path, "data", layout.form):
            if member in members and not isinstance(value, dict):
                self.found = True
                table = RowTable(members[member](value, member), [path])
                setattr(self, "dialogues" if member == "dialogs" else member, table)
        if self.found and len(self.dialogues):
            self._check_numbers()

    def _texts(self, rows: Any, member: str) -> Iterator[tuple[int, int, Row]]:
        for place, value in rows:
            if not isinstance(value, str):
                self.faults.add(f"{self.path}: {member}[{place}]", f"must be text, not {describe(value)}")
            yield 0, place, {"text": value}

    def _dialogues(self, rows: Any, member: str) -> Iterator[tuple[int, int, Row]]:
        for place, row in rows:
            where = f"{self.path}:{place}"
            try:
                if not isinstance(row, dict) or self.layout.takes(row, self.faults):
                    yield 0, place, self._dialogue(row)
            except ValueError as fault:
                self.faults.add(where, str(fault))

    def _dialogue(self, row: Any) -> Row:
        if not isinstance(row, dict) or not isinstance(row.get("dialog"), list):
            raise ValueError("must be an object with 'dialog', a list of rounds")
        turns = [_round(number, turn) for number, turn in enumerate(row["dialog"], 1)]
        ranked = not self.training and any(turn[3] is not None for turn in turns)
        asked = [at for at, turn in enumerate(turns) if turn[3 if ranked else 1] is not None]
        if self.training:
            turns = [[question, answer, None, None] for question, answer, _, _ in turns]
        found = {"image": image_of(row, self.layout), "image_id": row.get("image_id"), "name": row.get("image_id"),
                 "turns": turns, "asked": asked}
        return {**found, "caption": text(row["caption"])} if row.get("caption") else found

    def _check_numbers(self) -> None:
        """Rounds refer to texts that are there."""
        sizes = len(self.questions), len(self.answers)
        for index in range(len(self.dialogues)):
            for question, answer, _, candidates in self.dialogues[index]["turns"]:
                most = max([answer if answer is not None else 0, *(candidates or [])])
                if question >= sizes[0] or most >= sizes[1]:
                    self.faults.add(self.dialogues.place(index), f"refers to a text that the file has not (it has "
                                    f"{sizes[0]} questions, {sizes[1]} answers)")
                    break


def _round(number: int, turn: Any) -> list[Any]:
    """[question, answer or None, place of the right candidate or None, candidates or None] of one VisDial round."""
    given = turn if isinstance(turn, dict) else {}
    question, answer, options, label = (given.get(key) for key in ("question", "answer", "answer_options", "gt_index"))
    if not _number(question) or not (answer is None or _number(answer)):
        raise ValueError(f"round {number}: question and answer must be numbers of texts")
    if options is not None and not (isinstance(options, list) and all(map(_number, options))):
        raise ValueError(f"round {number}: answer_options must be numbers of answers")
    if label is not None and not (_number(label) and options is not None and label < len(options)):
        raise ValueError(f"round {number}: gt_index is {label!r}, not a place among the answer_options")
    return [question, answer, label, options]


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
