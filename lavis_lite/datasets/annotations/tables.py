"""Rows whose size in memory does not grow with the number of workers that read them.

They are JSON text in one flat buffer, in memory or in a mapped file. Forked workers share its pages because no Python
object in it is ever touched. A row becomes a dict only while it is looked at.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import json.encoder
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavis_lite.datasets.files.mapped import LazyArray, Mapped, write_arrays

Row = dict[str, Any]
ELEMENT = "text"
"""kind of the elements of a list that is exploded"""
BLOCK = 1024
"""rows that are decoded at once by `skim`"""
ENCODE, DECODE = json.JSONEncoder(separators=(",", ":")).encode, json.JSONDecoder().raw_decode
"""made once: json.dumps and json.loads take twice the time"""
QUOTE = json.encoder.encode_basestring_ascii


class Block(NamedTuple):
    """Rows of a table, written already.

    Attributes:
        origins: file number and row number of each, one behind the other.
        text: all of them as JSON in ASCII, without spaces.
        lengths: how many characters of it each row has.
    """

    origins: list[int]
    text: str
    lengths: list[int]


class RowTable:
    """Rows of one or more annotation files, in order. Indexing decodes one row.

    Args:
        rows: (file number, row number in that file, row) in order, or blocks of rows.
        files: the files, for messages.
        kinds: field -> name of the kind that all its values were checked to be.

    Attributes:
        left_out: rows of the files that are not in the table because they lack what the section requires.
    """

    left_out = 0

    def __init__(self, rows: Iterable[tuple[int, int, Row] | Block], files: Sequence[Path | str],
                 kinds: Mapping[str, str] | None = None) -> None:
        self.files, self.kinds = [str(path) for path in files], dict(kinds or {})
        data, ends, origins = bytearray(), array("q", [0]), array("i")
        for item in rows:
            if isinstance(item, Block):
                ends.extend(itertools.islice(itertools.accumulate(item.lengths, initial=len(data)), 1, None))
                data += item.text.encode("ascii")
                origins.fromlist(item.origins)
            else:
                data += ENCODE(item[2]).encode("ascii")
                ends.append(len(data))
                origins.extend(item[:2])
        self._hold(np.frombuffer(data, np.uint8), np.frombuffer(ends, np.int64),
                   np.frombuffer(origins, np.int32).reshape(-1, 2))

    def _hold(self, data: NDArray[np.uint8], ends: NDArray[np.int64], origins: NDArray[np.int32]) -> None:
        import torch  # builders list their splits without it

        # as tensors, because those travel to spawned workers through shared memory
        self._data, self._ends, self._origins = (torch.from_numpy(part) for part in (data, ends, origins))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a table's file: data uint8[bytes], ends int64[N+1], places int32[N,2] (file, row number)."""
        return {"data": self._data.numpy(), "ends": self._ends.numpy(), "places": self._origins.numpy()}

    def save(self, path: Path, **facts: str) -> None:
        """Write a file that `MappedTable` opens, with some `facts`.

        Raises:
            OSError: it could not be written.
        """
        write_arrays(path, self.arrays(), {"files": json.dumps(self.files), "kinds": json.dumps(self.kinds), **facts})

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(index)

    def row(self, index: int) -> Row:
        """One row; `index` is known to be in the table."""
        first, end = self._ends[index:index + 2].tolist()
        return json.loads(self._data.numpy()[first:end].tobytes().decode())  # bytes would be searched for an encoding

    def skim(self) -> Iterator[Row]:
        """All rows in order, sooner than by index; a table may leave out candidates and what belongs to them."""
        data, ends = self._data.numpy().data, self._ends
        for block in range(0, len(self), BLOCK):
            bounds = ends[block:block + BLOCK + 1].tolist()
            text, at = bytes(data[bounds[0]:bounds[-1]]).decode("ascii"), 0
            for _ in bounds[1:]:
                row, at = DECODE(text, at)
                yield row

    def location(self, index: int) -> str:
        """`file:row` of a row, for messages. Rows of JSON lists count from 1; of line files it is the line number."""
        file, number = self.origin(index)
        return f"{self.files[file]}:{number}"

    def items(self) -> Iterator[tuple[int, int, Row]]:
        """(file number, row number, row) of every row, as the constructor takes them."""
        return ((*self.origin(index), self[index]) for index in range(len(self)))

    def origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row."""
        file, number = self._origins[index].tolist()
        return file, number

    def first_of_each(self, key: str, most: int) -> RowTable:
        """A table of the first `most` rows of every value of `key`, in order."""
        seen: Counter[Any] = Counter()

        def counts(row: Row) -> bool:
            seen[row[key]] += 1
            return seen[row[key]] <= most

        return RowTable((item for item in self.items() if counts(item[2])), self.files, self.kinds)

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order; files without rows are left out."""
        bounds = np.flatnonzero(np.diff(self._origins[:, 0].numpy())) + 1
        return np.diff(bounds, prepend=0, append=len(self)).tolist()

    def content_hash(self) -> str:
        """Hash of all rows in order: equal for equal rows, wherever their files are. Computed once."""
        return self._content_hash

    @functools.cached_property
    def _content_hash(self) -> str:  # about a second per GiB, and each validation asks for it
        ends = self._ends.numpy()
        digest = hashlib.blake2b((ends - ends[0]).tobytes(), digest_size=16)
        digest.update(self._data.numpy()[ends[0]:ends[-1]].data)
        return digest.hexdigest()

    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in (self._data, self._ends, self._origins))


class MappedTable(RowTable):
    """Rows in a mapped file: opened without being read, shared by all processes, opened again by spawned ones.

    What is read is checked against the file's checksums, block by block, the first time.

    Args:
        path: a file with the arrays of `RowTable.arrays` and the facts `files` and `kinds` (JSON).
        files: the annotation files, for messages, in place of those of the facts.
        first, end: the rows that belong to this table; by default all.
        sha256: of the file, if it is known; the rows are then not read to hash them.
        remedy: see `Mapped`.
    """

    def __init__(self, path: Path, files: Sequence[Path | str] | None = None, first: int = 0, end: int | None = None,
                 sha256: str | None = None, remedy: str = "Remove it: the next start rewrites it.") -> None:
        self._made_of = (path, files, first, end, sha256, remedy)
        mapped = Mapped(path, remedy)
        self.facts = mapped.facts
        self.files = json.loads(mapped.facts["files"]) if files is None else [str(file) for file in files]
        self.kinds = json.loads(mapped.facts["kinds"])
        end = len(mapped.lazy("ends")) - 1 if end is None else end
        self._lazy = (mapped.lazy("data"), mapped.lazy("ends").part(first, end + 1),
                      mapped.lazy("places").part(first, end))
        self._hold(*(part.unchecked() for part in self._lazy))

    def content_hash(self) -> str:
        """As for any table; of a file whose hash is known, that hash and which of its rows are meant."""
        _, _, first, _, sha256, _ = self._made_of
        if sha256 is not None:
            return f"{sha256} {first}+{len(self)}"
        self.check_all()
        return super().content_hash()

    def __reduce__(self) -> Any:
        return type(self), self._made_of

    def check_all(self) -> None:
        """Check all of it now.

        Raises:
            DataError: it is damaged.
        """
        data, ends, origins = self._lazy
        bounds = ends.whole()
        data.rows(int(bounds[0]), int(bounds[-1]))
        origins.whole()

    def row(self, index: int) -> Row:
        """One row."""
        data, ends, _ = self._lazy
        first, end = ends.rows(index, index + 2).tolist()
        return json.loads(data.rows(first, end).tobytes())

    def skim(self) -> Iterator[Row]:
        """All rows in order."""
        self.check_all()
        return super().skim()

    def origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row."""
        self._lazy[2].rows(index, index + 1)
        return super().origin(index)

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order."""
        self._lazy[2].whole()
        return super().file_sizes()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The checked arrays, see `RowTable.arrays`."""
        self.check_all()
        return super().arrays()


class ExplodedTable(RowTable):
    """A view of a table with one row per element of a list field, without reading any row.

    Args:
        table: the table.
        key: the list field.
        starts: int64[N+1], elements in the rows before each row.
    """

    def __init__(self, table: RowTable, key: str, starts: NDArray[np.int64] | LazyArray) -> None:
        self.table, self.key = table, key
        self.starts = starts if isinstance(starts, LazyArray) else LazyArray(starts)
        self.files, self.kinds = table.files, {**table.kinds, key: ELEMENT}

    def __len__(self) -> int:
        return int(self.starts[len(self.starts) - 1] - self.starts[0])

    def _find(self, index: int) -> tuple[int, int]:
        """(row of the table, index in its list)."""
        element = index + int(self.starts[0])
        row = self.starts.search(element + 1) - 1
        return row, element - int(self.starts[row])

    def row(self, index: int) -> Row:
        """One row."""
        row, element = self._find(index)
        whole = self.table[row]
        return {**whole, self.key: whole[self.key][element]}

    def skim(self) -> Iterator[Row]:
        """All rows in order."""
        return (self[index] for index in range(len(self)))

    def origin(self, index: int) -> tuple[int, int]:
        """(file number, row number) of a row."""
        return self.table.origin(self._find(index)[0])

    def file_sizes(self) -> list[int]:
        """Rows that come from each file, in order."""
        ends = np.cumsum([0, *self.table.file_sizes()])
        return np.diff(self.starts.whole()[ends]).tolist()

    def content_hash(self) -> str:
        """The table's hash, which covers the lists, and the field's name."""
        return f"{self.table.content_hash()} {self.key}"

    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.table.nbytes() + self.starts.unchecked().nbytes
