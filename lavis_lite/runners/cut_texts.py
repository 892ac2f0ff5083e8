"""Texts that were longer than a setting allows and were cut: told once at the start of a training, and at its end."""

from __future__ import annotations

from collections.abc import Callable

from lavis_lite import distributed
from lavis_lite.models.base import BaseModel
from lavis_lite.models.plain_text import CutTexts


class CutTextReport:
    """Tells of the cut texts of all ranks; called by all of them together.

    Args:
        model: counts them.
        log: takes a line.
    """

    def __init__(self, model: BaseModel, log: Callable[[str], None]) -> None:
        self.model, self.log = model, log
        self._told: dict[str, CutTexts] | None = None

    def at_start(self) -> None:
        """Tell of the texts so far, the first time that it is called. Collective."""
        if self._told is None:
            self.now()

    def now(self) -> None:
        """Tell of the texts so far, where there are more than were told of. Collective."""
        counts = total(self.model)
        for what, count in counts.items():
            if count.cut and (self._told or {}).get(what, CutTexts()).cut != count.cut:
                self.log(f"{count.cut:,} of {count.read:,} {what}; the longest has {count.longest} tokens")
        self._told = counts


def total(model: BaseModel) -> dict[str, CutTexts]:
    """Cut texts of all ranks. Collective."""
    summed: dict[str, CutTexts] = {}
    for part in distributed.all_gather_object(model.cut_texts()):
        for what, count in part.items():
            summed[what] = summed.get(what, CutTexts()).plus(count)
    return summed
