"""Cells of CSV and TSV files: text, unless a cell is a list or an object, as JSON or as Python (pandas) writes it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Any

from lavis_lite.datasets.annotations.json_text import DECODER, DuplicateKeyError

_CLOSING = {"[": "]", "{": "}", "(": ")"}
_LIST_OF_TEXTS = re.compile(r"""\[\s*['"].*\]|\(\s*['"].*['"]\s*,?\s*\)""", re.DOTALL)
_NOT_A_LITERAL = (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def cell_value(cell: str) -> Any:
    """What a cell says: its text as it is, or the list or object that is written in it.

    `["a dog", "a cat"]`, `['a dog', 'a cat']` and `('a dog', 'a cat')` are lists; `[sic]` and `(a dog)` are texts.

    Raises:
        ValueError: a list that cannot be read for certain; the message is a clause.
    """
    bare = cell.strip()
    if not bare or _CLOSING.get(bare[0]) != bare[-1]:
        return cell
    found = _json(bare)
    if found is None:
        found = _python(bare)
    if found is None and _LIST_OF_TEXTS.fullmatch(bare):
        raise ValueError(f'looks like a list, but is none: {bare[:80]!r}. Write it as JSON: ["one text", "another"]')
    return cell if found is None else found


def _json(bare: str) -> Any:
    try:
        return DECODER.decode(bare)
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError):
        return None


def _python(bare: str) -> Any:
    """A list, a tuple of texts or a dictionary as Python prints them; None for all else."""
    try:
        value = ast.literal_eval(bare)
        joined = isinstance(value, list | tuple) and _texts_without_commas(bare)
    except _NOT_A_LITERAL:
        return None
    if isinstance(value, set):
        raise ValueError("is a Python set, which has no order; write a JSON list")
    if joined:
        raise ValueError(f"is a list without commas, as NumPy prints it: {bare[:80]!r}; write a JSON list")
    if isinstance(value, tuple):
        return list(value) if value and all(isinstance(item, str) for item in value) else None
    return value if isinstance(value, list | dict) else None


def _texts_without_commas(bare: str) -> bool:
    """Whether two texts follow each other; Python would join them to one."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(bare).readline)
             if token.type not in (tokenize.NL, tokenize.NEWLINE)]
    return any(kinds[at:at + 2] == [tokenize.STRING] * 2 for at in range(len(kinds)))
