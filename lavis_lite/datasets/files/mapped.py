"""Named arrays in one file, mapped into memory: opening reads only the header, and processes share the pages.

The layout is safetensors', so that other programs can read the files too. One more array, `crc32`, holds a checksum of
the header and one of every block of 16 KiB after it. A block is checked when something in it is first read: a flipped
bit on a disk is an error and never another value, and opening a file still reads next to nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.errors import DataError
from lavis_lite.io import atomic

Array = NDArray[Any]
Arrays = Mapping[str, "Array | Sequence[Array]"]

BLOCK = 16_384
"""bytes of a block"""
_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "I32": np.int32, "I64": np.int64,
    "F16": np.float16, "F32": np.float32, "BF16": np.uint16}
_MOST_HEADER = 100_000_000
SUMS = "crc32"
"""name of the array of checksums: the four bytes of each, that of header and checksums first"""


# --- writing ---------------------------------------------------------------------------------------------------------
def write_arrays(path: Path, arrays: Arrays, facts: Mapping[str, str], bf16: Sequence[str] = ()) -> None:
    """Write a file, whole or not at all.

    Args:
        path: the file.
        arrays: by name; a list of arrays is written as one, joined along the first axis.
        facts: short texts, returned as `Mapped.facts`.
        bf16: names of arrays whose uint16 are the bits of bfloat16.

    Raises:
        OSError: it could not be written; an older file is untouched.
    """
    parts = {name: [value] if isinstance(value, np.ndarray) else list(value) for name, value in arrays.items()}
    names = sorted(parts, key=lambda name: -parts[name][0].dtype.itemsize)  # so that each starts at a multiple of it
    dtypes = {np.dtype(kind): name for name, kind in _DTYPES.items() if name != "BF16"}
    entries, end = {}, 0
    for name in names:
        first = parts[name][0]
        start, end = end, end + sum(part.nbytes for part in parts[name])
        entries[name] = {"dtype": "BF16" if name in bf16 else dtypes[first.dtype],
                         "shape": [sum(len(part) for part in parts[name]), *first.shape[1:]],
                         "data_offsets": [start, end]}
    length = 4 * (1 + _block_count(end))
    entries[SUMS] = {"dtype": "U8", "shape": [length], "data_offsets": [end, end + length]}
    text = json.dumps({"__metadata__": dict(facts), **entries}).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with atomic.replaced(path) as temporary, temporary.open("w+b") as file:
        file.write(head)
        for part in (part for name in names for part in parts[name]):
            file.write(np.ascontiguousarray(part).data)
        file.seek(len(head))
        sums = np.array([zlib.crc32(block) for block in iter(partial(file.read, BLOCK), b"")], "<u4")
        file.write(_seal(head, sums.tobytes()))


def _block_count(size: int) -> int:
    return -(-size // BLOCK)


def _seal(head: bytes, sums: bytes) -> bytes:
    """The array of checksums: one of the header and of the others, and the others."""
    return zlib.crc32(sums, zlib.crc32(head)).to_bytes(4, "little") + sums


# --- reading ---------------------------------------------------------------------------------------------------------
class Mapped:
    """The arrays of a file that `write_arrays` wrote; bfloat16 comes as uint16.

    `mapped[name]` is a whole array, all of it checked; `mapped.lazy(name)` checks what is read of it.

    Args:
        path: the file. It must not change while it is mapped; `write_arrays` puts a new file in its place.
        remedy: a sentence for the error about a damaged file: how to get it again.

    Attributes:
        facts: its texts.
        digest: sha256 of header and checksums, and so of the whole file.

    Raises:
        DataError: missing, cut short, altered, or not such a file.
    """

    def __init__(self, path: Path, remedy: str = "") -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                head = _read_head(file)
                size = os.fstat(file.fileno()).st_size
                header = json.loads(head[8:])
                self.facts: dict[str, str] = header.pop("__metadata__", {})
                self._entries = {name: _entry(entry, len(head), size) for name, entry in header.items()}
                sums = _read_sums(file, head, self._entries, size)
                # copy-on-write: torch refuses read-only memory; nobody writes
                self._content = np.memmap(file, np.uint8, "c").view(np.ndarray)
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file. {remedy}".strip()) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: damaged, or not a file of arrays ({error}). {remedy}".strip()) from error
        self.digest = hashlib.sha256(head + sums).hexdigest()
        covered = self._content[:self._entries[SUMS][2]]
        self._blocks = _Blocks(path, covered, len(head), np.frombuffer(sums, "<u4"), remedy)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Array:
        return self.lazy(name).whole()

    def lazy(self, name: str) -> LazyArray:
        """An array that is checked block by block as it is read."""
        if name not in self._entries:
            raise DataError(f"{self.path}: has no array {name!r}; it was not written for this.")
        dtype, shape, offset = self._entries[name]
        content = self._content[offset:offset + math.prod(shape) * dtype.itemsize]
        return LazyArray(content.view(dtype).reshape(shape), offset, self._blocks)


def _read_head(file: IO[bytes]) -> bytes:
    """Length and text of the header."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"its header claims {length:,} bytes")
    return start + file.read(length)


def _read_sums(file: IO[bytes], head: bytes, entries: Mapping[str, Any], size: int) -> bytes:
    """The checksums of the blocks, checked together with the header."""
    if SUMS not in entries:
        raise ValueError("it has no checksums: an earlier version of this package, or another program, wrote it")
    _, (length, *_), offset = entries[SUMS]
    if offset + length != size or length != 4 * (1 + _block_count(offset - len(head))):
        raise ValueError("its size is not the one that was written")
    file.seek(offset)
    content = file.read()
    if _seal(head, content[4:]) != content:
        raise ValueError("its header is not the one that was written")
    return content[4:]


def _entry(entry: dict[str, Any], data: int, size: int) -> tuple[Any, tuple[int, ...], int]:
    """(dtype, shape, offset in the file) of an array; `data` is where the arrays begin."""
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(int(side) for side in entry["shape"])
    start, end = entry["data_offsets"]
    if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize or data + end > size:
        raise ValueError("an array lies outside of the file")
    return dtype, shape, data + start


class _Blocks:
    """The checksums uint32[blocks] of a file's blocks, and which of them this process has checked.

    `content` is uint8[bytes], the file up to the end of its last block; the first begins at `start`.
    """

    def __init__(self, path: Path, content: Array, start: int, sums: Array, remedy: str = "") -> None:
        self.path, self._content, self.start, self._sums, self._remedy = path, content, start, sums, remedy
        self._good = bytearray(len(sums))

    def check(self, first: int, end: int) -> None:
        """Check the blocks that hold the file's bytes [first, end)."""
        one, last = (first - self.start) // BLOCK, (end - 1 - self.start) // BLOCK
        if self._good.find(0, one, last + 1) < 0:
            return
        for block in range(one, last + 1):
            if self._good[block]:
                continue
            begin = self.start + block * BLOCK
            content = self._content[begin:begin + BLOCK]
            if zlib.crc32(content.data) != int(self._sums[block]):
                raise DataError(f"{self.path}: bytes {begin} to {begin + len(content) - 1} are not those that were "
                                f"written, so the file is damaged. {self._remedy}".rstrip())
            self._good[block] = 1


class LazyArray:
    """An array of a mapped file whose blocks are checked when they are first read.

    Args:
        content: the array.
        offset: of its first byte in the file.
        blocks: of the file; None: the array is in memory, and there is nothing to check.
    """

    def __init__(self, content: Array, offset: int = 0, blocks: _Blocks | None = None) -> None:
        self._content, self._offset, self._blocks = content, offset, blocks
        self._stride = content.strides[0] if content.size else 0

    def __reduce__(self) -> Any:
        return type(self), (self.whole(),)

    def __len__(self) -> int:
        return len(self._content)

    def part(self, first: int, end: int) -> LazyArray:
        """Elements [first, end) of the first axis, unread."""
        return LazyArray(self._content[first:end], self._offset + first * self._stride, self._blocks)

    def unchecked(self) -> Array:
        """The array as it is in the file."""
        return self._content

    def rows(self, first: int, end: int) -> Array:
        """Elements [first, end) of the first axis.

        Raises:
            DataError: they are not those that were written.
        """
        found = self._content[first:end]
        if found.size and self._blocks is not None:
            begin = self._offset + first * self._stride
            self._blocks.check(begin, begin + found.nbytes)
        return found

    def whole(self) -> Array:
        """All of it."""
        return self.rows(0, len(self._content))

    def __getitem__(self, index: int) -> Any:
        """One element; `index` is not negative."""
        return self.rows(index, index + 1)[0]

    def search(self, value: Any) -> int:
        """As `np.searchsorted` with side="left" in an array that is sorted: how many elements are below `value`."""
        index = int(np.searchsorted(self._content, value))
        found = self.rows(max(index - 1, 0), index + 1)
        if (index and not found[0] < value) or (index < len(self) and not value <= found[-1]):
            return int(np.searchsorted(self.whole(), value))  # raises: an element that is not checked misled it
        return index

    def find(self, value: Any) -> int | None:
        """Index of an element of an array that is sorted; None: it is not there."""
        index = self.search(value)
        return index if index < len(self) and self[index] == value else None
