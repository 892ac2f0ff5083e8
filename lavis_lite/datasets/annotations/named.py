"""Columns that a section names: one that no row has is refused, so that a wrong name never goes unnoticed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.errors import DataError, did_you_mean


class NamedColumns:
    """Keeps track of which named columns the rows of a split's files have.

    Args:
        names: what a column holds -> what the section calls it; several names if the values stand in several columns.
    """

    def __init__(self, names: Mapping[str, str | Sequence[str]]) -> None:
        listed = {key: [value] if isinstance(value, str) else value for key, value in names.items()}
        self._unseen = {column: key for key, columns in listed.items() for column in columns}
        self._present: dict[str, None] = {}

    def note(self, row: Mapping[str, Any]) -> None:
        """One more row of the files; cheap once all columns were seen."""
        if self._unseen:
            self._present.update(dict.fromkeys(map(str, row)))
            for column in self._unseen.keys() & row.keys():
                del self._unseen[column]

    def has(self, columns: Iterable[str]) -> bool:
        """Whether a row had one of these columns; known as long as a named column was not seen."""
        return any(column in self._present for column in columns)

    def refuse_unseen(self, files: Iterable[Path | str], except_for: Collection[str] = ()) -> None:
        """Check that every named column was seen.

        Args:
            files: for the message.
            except_for: what may be missing: what the columns hold, as in `names`.

        Raises:
            DataError: names the column, what it was named for, and the nearest column that the rows have.
        """
        for column, key in self._unseen.items():
            if key not in except_for:
                raise DataError(f"{', '.join(map(str, files))}: no row has the column {column!r}, which the data set's "
                                f"section names for {key}; {did_you_mean(column, self._present)}")
