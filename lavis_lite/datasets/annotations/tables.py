"""Rows that stay the same size however many workers read them.

They live as JSON text in one flat buffer, in memory or in a mapped file: forked workers share its pages because no
Python object in it is ever touched. A row becomes a dict only while it is looked at.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.datasets.files.blocks import LazyArray
from lavis_lite.datasets.files.mapped import Mapped, write_arrays

Row = dict[str, Any]
ELEMENT = "text"
"""kind of the elements of a list that is exploded"""


class RowTable:
    """Rows of one or more annotation files, in order. Indexing decodes one row.

    Args:
        rows: (file number, row number in that file, row) in order.
        files: the files, for messages.
        kinds: field -> name of the kind that all its values were checked to be.

    Attributes:
        left_out: rows of the files that are not in the table because they lack what the section requires.
    """

    left_out = 0

    def __init__(self, rows: Iterable[tuple[int, int, Row]], files: Sequence[Path | str],
                 kinds: Mapping[str, str] | None = None) -> None:
        self.files, self.kinds = [str(path) for path in files], dict(kinds or {})
        data, ends, places = bytearray(), array("q", [0]), array("i")
        for file, number, row in rows:
            data += json.dumps(row, separators=(",", ":")).encode("ascii")
            ends.append(len(data))
            places.extend((file, number))
        self._hold(np.frombuffer(data, np.uint8), np.frombuffer(ends, np.int64),
                   np.frombuffer(places, np.int32).reshape(-1, 2))

    def _hold(self, data: NDArray[np.uint8], ends: NDArray[np.int64], places: NDArray[np.int32]) -> None:
        import torch  # builders list their splits without it

        # as tensors, because those travel to spawned workers through shared memory
        self._data, self._ends, self._places = (torch.from_numpy(part) for part in (data, ends, places))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file of this table holds: data uint8[bytes], ends int64[N+1], places int32[N,2]."""
        return {"data": self._data.numpy(), "ends": self._ends.numpy(), "places": self._places.numpy()}

    def save(self, path: Path, **facts: str) -> None:
        """Write a file that `MappedTable` opens; `facts` are kept with it.

        Raises:
            OSError: it could not be written.
        """
        write_arrays(path, self.arrays(), {"files": json.dumps(self.files), "kinds": json.dumps(self.kinds), **facts})

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        first, end = self._ends[index:index + 2].tolist()
        return json.loads(self._data.numpy()[first:end].tobytes())

    def skim(self) -> Iterator[Row]:
        """All rows in order, sooner than by index; a table may leave out candidates and what belongs to them."""
        data, ends = self._data.numpy().data, self._ends.tolist()
        return (json.loads(bytes(data[first:end])) for first, end in pairwise(ends))

    def place(self, index: int) -> str:
        """`file:row` of a row, for messages. Rows of JSON lists count from 1; of line files it is the line number."""
        file, number = self._origin(index)
        return f"{self.files[file]}:{number}"

    def items(self) -> Iterator[tuple[int, int, Row]]:
        """(file number, row number, row) of every row, as the constructor takes them."""
        for index in range(len(self)):
            file, number = self._origin(index)
            yield file, number, self[index]

    def _origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row."""
        file, number = self._places[index].tolist()
        return file, number

    def first_of_each(self, key: str, most: int) -> RowTable:
        """A table of the first `most` rows of every value of `key`, in order."""
        seen: Counter[Any] = Counter()
        kept: list[tuple[int, int, Row]] = []
        for file, number, row in self.items():
            seen[row[key]] += 1
            if seen[row[key]] <= most:
                kept.append((file, number, row))
        return RowTable(kept, self.files, self.kinds)

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order; files without rows are left out."""
        bounds = np.flatnonzero(np.diff(self._places[:, 0].numpy())) + 1
        return np.diff(bounds, prepend=0, append=len(self)).tolist()

    def content_hash(self) -> str:
        """Hash of all rows in order: equal for equal rows, wherever their files are. About a second per GiB."""
        ends = self._ends.numpy()
        digest = hashlib.blake2b((ends - ends[0]).tobytes(), digest_size=16)
        digest.update(self._data.numpy()[ends[0]:ends[-1]].data)
        return digest.hexdigest()

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self._data, self._ends, self._places))


class MappedTable(RowTable):
    """Rows in a mapped file: opened without being read, shared by all processes, looked up again by spawned ones.

    What is read is checked against the file's checksums, block by block, the first time.

    Args:
        path: a file with the arrays of `RowTable.arrays` and the facts `files` and `kinds` (JSON).
        files: the annotation files, for messages, in place of those of the facts.
        first, end: the rows that belong to this table; by default all.
        sha256: of the file, if its owner knows it; the rows are then not read to hash them.
        remedy: see `Mapped`.
    """

    def __init__(self, path: Path, files: Sequence[Path | str] | None = None, first: int = 0, end: int | None = None,
                 sha256: str | None = None, remedy: str = "Remove it: the next start writes it anew.") -> None:
        self._made_of = (path, files, first, end, sha256, remedy)
        held = Mapped(path, remedy)
        self.facts = held.facts
        self.files = json.loads(held.facts["files"]) if files is None else [str(file) for file in files]
        self.kinds = json.loads(held.facts["kinds"])
        end = len(held.lazy("ends")) - 1 if end is None else end
        self._lazy = held.lazy("data"), held.lazy("ends").part(first, end + 1), held.lazy("places").part(first, end)
        self._hold(*(part.unchecked() for part in self._lazy))

    def content_hash(self) -> str:
        """As for any table; of a file whose hash is known, that hash and which rows of it are meant."""
        _, _, first, _, sha256, _ = self._made_of
        if sha256 is None:
            self.prove()
        return super().content_hash() if sha256 is None else f"{sha256} {first}+{len(self)}"

    def __reduce__(self) -> Any:
        return type(self), self._made_of

    def prove(self) -> None:
        """Check all of it now.

        Raises:
            DataError: it is damaged.
        """
        data, ends, places = self._lazy
        bounds = ends.whole()
        data.rows(int(bounds[0]), int(bounds[-1]))
        places.whole()

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        data, ends, _ = self._lazy
        first, end = ends.rows(index, index + 2).tolist()
        return json.loads(data.rows(first, end).tobytes())

    def skim(self) -> Iterator[Row]:
        """All rows in order."""
        self.prove()
        return super().skim()

    def place(self, index: int) -> str:
        """`file:row`, see `RowTable.place`."""
        self._lazy[2].rows(index, index + 1)
        return super().place(index)

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order."""
        self._lazy[2].whole()
        return super().file_sizes()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `RowTable.arrays`."""
        self.prove()
        return super().arrays()


class ExplodedTable(RowTable):
    """A view of a table with one row per element of a list field, without reading any row.

    Args:
        table: what it is a view of.
        key: the list field.
        starts: int64[N+1], elements in the rows before each row.
    """

    def __init__(self, table: RowTable, key: str, starts: NDArray[np.int64] | LazyArray) -> None:
        self.table, self.key = table, key
        self.starts = starts if isinstance(starts, LazyArray) else LazyArray(starts)
        self.files, self.kinds = table.files, {**table.kinds, key: ELEMENT}

    def __len__(self) -> int:
        return int(self.starts[len(self.starts) - 1] - self.starts[0])

    def _row(self, index: int) -> tuple[int, int]:
        """Row of the table, and place in its list."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        place = index + int(self.starts[0])
        row = self.starts.search(place + 1) - 1
        return row, place - int(self.starts[row])

    def __getitem__(self, index: int) -> Row:
        row, element = self._row(index)
        whole = self.table[row]
        return {**whole, self.key: whole[self.key][element]}

    def skim(self) -> Iterator[Row]:
        """All rows in order."""
        return (self[index] for index in range(len(self)))

    def place(self, index: int) -> str:
        """`file:row`, see `RowTable.place`."""
        return self.table.place(self._row(index)[0])

    def _origin(self, index: int) -> tuple[int, int]:
        return self.table._origin(self._row(index)[0])

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order."""
        ends = np.cumsum([0, *self.table.file_sizes()])
        return np.diff(self.starts.whole()[ends]).tolist()

    def content_hash(self) -> str:
        """That of the table, which decides what is in the lists."""
        return f"{self.table.content_hash()} {self.key}"

    def nbytes(self) -> int:
        """Bytes held."""
        return self.table.nbytes() + self.starts.unchecked().nbytes
