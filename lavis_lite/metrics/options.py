"""Written answers to multiple-choice questions -> the option that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

_LETTER_ALONE = re.compile(r"\(?([A-Za-z])\)?[.,:]?")
_LETTER_BEFORE_TEXT = re.compile(r"(?:([A-Z])[.:)]|\(([A-Za-z])\)[.:]?)\s+\S")
_STATED_LETTER = re.compile(r"The answer is ([A-Z])(?![A-Za-z])")
_STATED_IN_OTHER_WORDS = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s+(?:\(([a-z])\)|([a-z])(?=[.,;:)]|$))", re.IGNORECASE)
_STATED_TEXT = re.compile(r"\banswer(?:\s+is\b|\s*:)\s*:?\s*(.+)", re.IGNORECASE)
_OUTER_MARKS = " .,;:!\"'()"


def written_option(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that a written answer names; None if it names no option.

    These forms are tried in order:

    - the option's letter alone ("B", "(b)", "B.");
    - the letter before more text ("B. mushroom");
    - an option's text after "the answer is";
    - the statement "The answer is B." anywhere, exactly once;
    - the same in other words ("Answer: (b)");
    - an option's text alone.

    Letters beyond the options are ignored. Texts are compared without case, outer marks and repeated blanks.

    Source: LLaVA's eval_science_qa.py reads the letter alone, the letter before ". " and the one statement. The
        statement is that of ScienceQA's run_gpt3.py. Both scripts ignore all other forms.
    """
    written = " ".join(text.split())
    for letter in _letters(written, choices):
        index = ascii_uppercase.find(letter.upper())
        if 0 <= index < len(choices):
            return index
    return _with_text(written, choices)


def _letters(written: str, choices: Sequence[str]) -> Iterator[str]:
    """Letters that an answer gives, the plainest form first."""
    if alone := _LETTER_ALONE.fullmatch(written):
        yield alone[1]
    if before := _LETTER_BEFORE_TEXT.match(written):
        yield before[1] or before[2]
    stated = _STATED_TEXT.search(written)
    index = _with_text(stated[1], choices) if stated else None
    if index is not None:
        yield ascii_uppercase[index]
        return
    for pattern in (_STATED_LETTER, _STATED_IN_OTHER_WORDS):
        found = ["".join(groups) for groups in pattern.findall(written)]
        if found:
            yield from found if len(found) == 1 else ()
            return


def _with_text(text: str, choices: Sequence[str]) -> int | None:
    """The first option with this text."""
    plain = _plain(text)
    return next((index for index, choice in enumerate(choices) if plain and _plain(choice) == plain), None)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(_OUTER_MARKS)
