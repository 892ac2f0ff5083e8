"""Names of files in annotations: none may lead out of the folder of the images."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_lite.datasets.annotations.rows import Field, RowFaults, file_name
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.files.confine import Confinement


class FileNameIn:
    """`annotations.file_name` for files of one folder: refuses absolute names of files elsewhere, too.

    Symbolic links are checked when a file is opened (`ImageFolder.path`).

    Args:
        root: the folder.
    """

    __name__ = file_name.__name__

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.__qualname__ = f"{file_name.__name__} in {root}"  # tables that are kept are told apart by it
        self._confinement = Confinement(root)

    def __call__(self, value: Any) -> str:
        """The name; ValueError with a clause that says what is wrong."""
        name = file_name(value)
        if os.path.isabs(name) and not self._confinement.holds_name(name):
            raise ValueError(f"leads out of its folder {self.root}: {name[:200]!r}")
        return name


def within(fields: Sequence[Field], root: Path | str) -> list[Field]:
    """The fields, with file names confined to a folder."""
    return [_confined(field, root) if field.kind is file_name else field for field in fields]


def _confined(field: Field, root: Path | str) -> Field:
    """A copy, whatever class of fields it is, with another kind."""
    copied = copy.copy(field)
    object.__setattr__(copied, "kind", FileNameIn(root))
    return copied


def refuse_outside(table: RowTable, root: Path | str) -> None:
    """As `within`, for rows that are in a table already.

    Raises:
        DataError: up to 20 rows whose file is not in the folder, in one message.
    """
    faults, check = RowFaults(), FileNameIn(root)
    for index in range(len(table)):
        try:
            check(table[index].get("image", "."))
        except ValueError as fault:
            faults.add(table.place(index), f"field 'image' {fault}")
    faults.stop_if_any()
