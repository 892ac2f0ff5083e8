"""Tables over the columns of Parquet and Arrow files: opened without making a Python object of any row.

All values are checked by column. If anything is unusual in any row, the files are read row by row instead, which
accepts or refuses it with its message. So both ways give equal rows.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.datasets.annotations.kinds import MOST_CHARACTERS
from lavis_lite.datasets.annotations.tables import ExplodedTable, Row, RowTable
from lavis_lite.datasets.files.columnar import batches_of, named_rows

if TYPE_CHECKING:
    import pyarrow as pa

ColumnKind = tuple[str, str, str, bool]
"""(key, column, kind: text, texts, file_name or identifier, whether every row has it)"""
_KINDS = ("text", "texts", "file_name", "identifier")


class ColumnTable(RowTable):
    """Rows over columns. Indexing makes one row.

    Args:
        files: Parquet or Arrow files.
        kinds: see `ColumnKind`; texts are lists.
    """

    def __init__(self, files: Sequence[Path], kinds: Sequence[ColumnKind]) -> None:
        self.paths, self.fields = list(files), list(kinds)
        self.files = [str(path) for path in files]
        self.kinds = {key: kind for key, _, kind, _ in kinds}
        self.batches: list[tuple[int, int, pa.RecordBatch]] = []
        """(file, row of the file, rows)"""
        for number, path in enumerate(files):
            first = 0
            for batch in batches_of(path, [column for _, column, _, _ in kinds]):
                if batch.num_rows:
                    self.batches.append((number, first, batch))
                    first += batch.num_rows
        self.starts = np.cumsum([0, *(batch.num_rows for _, _, batch in self.batches)]).tolist()

    def __reduce__(self) -> Any:
        return type(self), (self.paths, self.fields)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[int, int, pa.RecordBatch, int]:
        """(file, row of the file, batch, its row)."""
        number = bisect_right(self.starts, index) - 1
        file, first, batch = self.batches[number]
        within = index - self.starts[number]
        return file, first + within, batch, within

    def row(self, index: int) -> Row:
        """One row."""
        file, row, batch, within = self._find(index)
        return self._checked(next(named_rows(batch.slice(within, 1), row, file)))

    def _checked(self, raw: Row) -> Row:
        return {key: [value] if kind == "texts" and isinstance(value, str) else value
                for key, column, kind, _ in self.fields if (value := raw.get(column)) is not None}

    def skim(self) -> Iterator[Row]:
        """All rows in order."""
        return (self._checked(raw) for file, first, batch in self.batches for raw in named_rows(batch, first, file))

    def origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row."""
        file, row, _, _ = self._find(index)
        return file, row + 1

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order."""
        counts = [0] * len(self.files)
        for file, _, batch in self.batches:
            counts[file] += batch.num_rows
        return [count for count in counts if count]

    def as_rows(self) -> RowTable:
        """The same rows, in a table that holds them as text."""
        origins = ((file, first + row + 1) for file, first, batch in self.batches for row in range(batch.num_rows))
        return RowTable(((*origin, row) for origin, row in zip(origins, self.skim(), strict=True)), self.files,
                        self.kinds)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those of `as_rows`."""
        return self.as_rows().arrays()

    @functools.cached_property
    def _content_hash(self) -> str:  # equal for equal rows, whatever files they are in
        return self.as_rows().content_hash()

    def nbytes(self) -> int:
        """Bytes in memory, or mapped."""
        return sum(batch.nbytes for _, _, batch in self.batches)

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column's values, batch by batch; batches without it are left out."""
        return (batch.column(name) for _, _, batch in self.batches if name in batch.schema.names)


def open_columns(files: Sequence[Path], kinds: Sequence[ColumnKind], explode: str | None) -> RowTable | None:
    """A table over columns if every value of them is usual; None: read the files row by row. `explode`: `read_table`.

    Raises:
        DataError: a file cannot be read.
    """
    if any(kind not in _KINDS for _, _, kind, _ in kinds):
        return None
    table = ColumnTable(files, kinds)
    if not len(table) or not all(_is_usual(table, kind) for kind in kinds):
        return None
    if explode is None:
        return table
    (column,) = (column for key, column, _, _ in kinds if key == explode)
    counts = [_list_lengths(values) for values in table.column(column)]
    return ExplodedTable(table, explode, np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64))


def _list_lengths(values: pa.Array) -> NDArray[np.int64]:
    import pyarrow as pa
    import pyarrow.compute as compute

    if pa.types.is_list(values.type):
        return compute.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.ones(len(values), np.int64)


def _is_usual(table: ColumnTable, field: ColumnKind) -> bool:
    """Whether all values of a column are what reading row by row would accept and leave unchanged."""
    import pyarrow as pa

    _, name, kind, required = field
    parts = list(table.column(name))
    if not parts:
        return not required
    if len(parts) < len(table.batches) or any(part.null_count for part in parts):
        return False
    kinds = pa.types
    if kind == "identifier" and all(kinds.is_integer(part.type) and part.type != pa.uint64() for part in parts):
        return True
    if kind == "file_name" and all(kinds.is_struct(part.type) or kinds.is_binary(part.type) for part in parts):
        return all(kinds.is_binary(part.type) or part.field("bytes").null_count == 0 for part in parts)
    if kind == "texts" and all(kinds.is_list(part.type) for part in parts):
        return all(_list_lengths(part).min() > 0 and _are_texts(part.flatten(), "text") for part in parts)
    return all(_are_texts(part, kind) for part in parts)


_ODD = {"file_name": r"\.\.|//|\./|^/|^data:|^cell:", "texts": r"^\s*\[(?s:.*)\]\s*$",
        "identifier": r"^\d+\.0$|\d[.,]\d+[eE]\+\d+"}
"""kind -> texts that reading row by row changes or looks at more closely"""


def _are_texts(values: pa.Array, kind: str) -> bool:
    """Whether all values are texts of allowed length with something in them, and none of them is odd."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)) or values.null_count:
        return False
    shortest = compute.min(compute.utf8_length(compute.utf8_trim_whitespace(values))).as_py()
    if not shortest or compute.max(compute.utf8_length(values)).as_py() > MOST_CHARACTERS:
        return False
    if compute.any(compute.match_substring(values, "\0")).as_py():
        return False
    return kind not in _ODD or not compute.any(compute.match_substring_regex(values, _ODD[kind])).as_py()
