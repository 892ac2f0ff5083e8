"""The header of a CSV or TSV file, and whether rows are what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.cells import cell_value
from lavis_lite.datasets.annotations.json_text import BadRow
from lavis_lite.errors import DataError

NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
"""delimiters in words"""
_MEDIA_FILE = re.compile(r".+\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|avi|mkv|webm|mov)", re.IGNORECASE)


class Header:
    """The names of the columns.

    A column without a name has empty cells, or is the first one and numbers the rows, as pandas writes it.

    Args:
        path: the file. line: where the header is. cells: its cells.
        delimiter: what separates cells, for messages.

    Raises:
        DataError: a name stands twice, or the first line looks like a row.
    """

    def __init__(self, path: Path, line: int, cells: list[str], delimiter: str) -> None:
        self.delimiter = delimiter
        self.names = [cell.strip() for cell in cells]
        named = [name for name in self.names if name]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}:{line}: column {twice!r} stands twice in the header; give each a name of its own.")
        file = next((name for name in named if _MEDIA_FILE.fullmatch(name)), None)
        if file is not None:
            raise DataError(f"{path}:{line}: {file!r} looks like a file of a row, not like the name of a column; begin "
                            f"the file with a header, such as image{delimiter}caption.")
        self._fewest = max(at for at, name in enumerate(self.names, 1) if name)

    def row(self, cells: list[str]) -> dict[str, Any] | BadRow:
        """{column: cell} of a row's cells."""
        if len(cells) > len(self.names):
            return BadRow(f"{_cells(len(cells) - len(self.names), 'more')} than the header has; "
                          + self._advice([cell for cell in cells[len(self.names):] if cell.strip()] == []))
        if len(cells) < self._fewest:
            return BadRow(f"{_cells(self._fewest - len(cells), 'fewer')} than the header has; it has "
                          f"{len(self.names)}: {', '.join(map(repr, self.names[:8]))}")
        if [cell.strip() for cell in cells] == self.names:
            return BadRow("is the header once more, as if two files were joined")
        row: dict[str, Any] = {}
        for at, (name, cell) in enumerate(zip(self.names, cells, strict=False)):
            if name:
                try:
                    row[name] = cell_value(cell)
                except ValueError as fault:
                    return BadRow(f"field {name!r} {fault}")
            elif cell.strip() and not (at == 0 and cell.strip().isdigit()):
                return BadRow(f"column {at + 1} has no name in the header, but {cell[:80]!r} in this row; name the "
                              f"column, or {self._advice(False)}")
        return row

    def _advice(self, only_empty: bool) -> str:
        if only_empty:
            return "the last are empty: end the header with the same delimiter, or remove it from the rows"
        mark = NAMES.get(self.delimiter, repr(self.delimiter)).removeprefix("a ")
        if self.delimiter == "\t":
            return f"a text may hold no {mark}"
        others = [name for other, name in NAMES.items() if other != self.delimiter and other in "".join(self.names)]
        hint = f". If {others[0]} separates the columns, set `delimiter`" if others else ""
        return f"quote texts that hold a {mark}{hint}"


def _cells(count: int, what: str) -> str:
    return f"{count} {what} cell{'s' if count > 1 else ''}"
