"""Lists of conversations, as LLaVA-Instruct has them: {image, id, conversations: [{from: human, value}, ...]}."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.rows import Row, RowFaults, describe, file_name, no_row, text

SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
"""who speaks -> the parity of the turn"""
MARK = "<image>"
_MARK = re.compile(rf"\s*{MARK}\s*")
OTHER_LAYOUTS = ("messages", "query", "turns", "dialog", "dialogue")
"""columns in which other layouts have their turns"""
WRITE = ('write them as "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]')


def conversations(rows: Iterable[tuple[int, int, Any]], paths: Sequence[Path], layout: Layout,
                  faults: RowFaults) -> Iterator[tuple[int, int, Row]]:
    """Rows of dialogues as `dialogues.TurnTable` has them.

    Args:
        rows: (file number, row number, raw row).
        paths: the files, for messages.
        layout: what an image is called, and which rows count.
        faults: is told of rows that cannot be read, and counts those left out.
    """
    for file, place, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(no_row(row))
            if layout.takes(row, faults):
                turns = pairs(_turns(row))
                yield file, place, {"image": image_of(row, layout), "image_id": row.get("id", place), "turns": turns,
                                    "name": f"{file}-{place}" if file else str(place),
                                    "asked": list(range(len(turns)))}
        except ValueError as fault:
            faults.add(f"{paths[file]}:{place}", str(fault))


def image_of(row: Row, layout: Layout) -> str:
    """The image of a dialogue, by the pattern or the row's own column.

    Raises:
        ValueError: the row has none; the message is a clause.
    """
    if layout.pattern is not None:
        return layout.pattern.fill({"split": layout.split, **row})
    column = layout.name("image")
    if row.get(column) in (None, "", []):
        raise ValueError(f"field {column!r} is missing or empty; `required: [{column}]` leaves such rows out")
    try:
        return file_name(row[column])
    except ValueError as fault:
        raise ValueError(f"field {column!r} {fault}") from fault


def _turns(row: Row) -> list[Any]:
    turns = row.get("conversations")
    if isinstance(turns, list):
        return turns
    other = next((name for name in OTHER_LAYOUTS if name in row), None)
    if other is not None:
        raise ValueError(f"has its turns in {other!r}; {WRITE}")
    raise ValueError("must be an object with 'conversations', a list of turns")


def pairs(turns: list[Any]) -> list[list[Any]]:
    """[question, answer, None, None] of every two turns.

    Raises:
        ValueError: the turns do not alternate, or one is empty; the message is a clause that says what to do.
    """
    if not turns:
        raise ValueError("conversations: has no turns")
    said = [_said(number, turn) for number, turn in enumerate(turns)]
    if len(said) % 2:
        raise ValueError(f"conversations[{len(said)}]: is a question without an answer; take the last turn out")
    return [[question, answer, None, None] for question, answer in zip(said[::2], said[1::2], strict=True)]


def _said(number: int, turn: Any) -> str:
    where = f"conversations[{number + 1}]"
    if not isinstance(turn, dict) or "from" not in turn:
        other = " as {role, content}" if isinstance(turn, dict) and "role" in turn else ""
        raise ValueError(f"{where}: must be {{from, value}}{f', not{other}' if other else ''}")
    _check_speaker(number, turn["from"], where)
    value = turn.get("value")
    if not isinstance(value, str):
        raise ValueError(f"{where}: value must be text, not {describe(value)}")
    if value.count(MARK) > 1:
        raise ValueError(f"{where}: value has {value.count(MARK)} marks {MARK}; a row has one image")
    try:
        return text(without_mark(value))
    except ValueError as fault:
        raise ValueError(f"{where}: value {fault}") from fault


def _check_speaker(number: int, speaker: Any, where: str) -> None:
    if speaker == "system":
        raise ValueError(f"{where}: is a system turn, which is not read; take it out, and put what it says into the "
                         "section's `instruction`")
    if speaker not in SPEAKERS:
        raise ValueError(f"{where}: must be from one of {', '.join(SPEAKERS)}, not {speaker!r}")
    if SPEAKERS[speaker] == number % 2:
        return
    if number == 0:
        raise ValueError(f"{where}: is from {speaker!r}, but a dialogue begins with a question; take the turn out")
    raise ValueError(f"{where}: is from {speaker!r} again; questions and answers take turns: join the two turns")


def without_mark(value: str) -> str:
    """A text without LLaVA's mark of the image, which comes before every text, and without the gap that it leaves."""
    return _MARK.sub(lambda found: "\n" if "\n" in found[0] else " ", value).strip()
