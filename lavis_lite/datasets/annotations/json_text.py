"""JSON decoded strictly: a key that stands twice in one object is refused, where Python would keep the last value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class DuplicateKeyError(ValueError):
    """An object has one key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in one "
                                "object")
    return held


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def json_fault(fault: Exception) -> str:
    """What is wrong with a text that `DECODER` refused, as a clause."""
    if isinstance(fault, DuplicateKeyError):
        return str(fault)
    return f"not JSON ({'nested too deeply' if isinstance(fault, RecursionError) else fault})"


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that cannot be read, so that all such rows can be reported at once.

    Args:
        reason: what is wrong with it, as a clause.
    """

    reason: str
