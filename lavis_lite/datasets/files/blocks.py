"""Checksums of a file's blocks: a block is checked when something in it is first read.

A flipped bit on a disk is then an error and never another value, and opening a file still reads next to nothing of it.
"""

from __future__ import annotations

import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.errors import DataError

Array = NDArray[Any]
BLOCK = 16_384
"""bytes of a block"""


def block_count(size: int) -> int:
    """Blocks of so many bytes."""
    return -(-size // BLOCK)


class BlockSums:
    """Checksums of what is written, block by block."""

    def __init__(self) -> None:
        self._sums = array("I")
        self._open, self._filled = 0, 0
        """checksum of the block that is being filled, and its bytes so far"""

    def add(self, written: Array) -> None:
        """Take note of the next contiguous array."""
        content = written.reshape(-1).view(np.uint8).data if written.size else memoryview(b"")
        while len(content):
            piece = content[:BLOCK - self._filled]
            self._open, self._filled = zlib.crc32(piece, self._open), self._filled + len(piece)
            content = content[len(piece):]
            if self._filled == BLOCK:
                self._end_block()

    def _end_block(self) -> None:
        self._sums.append(self._open)
        self._open = self._filled = 0

    def bytes(self) -> bytes:
        """The checksums, four bytes each; the last block may be a short one."""
        if self._filled:
            self._end_block()
        return np.array(self._sums, "<u4").tobytes()


class Blocks:
    """The checksums of a file's blocks, and which of them this process has checked.

    Args:
        path: the file, for messages.
        content: uint8[bytes] of the file up to where its last block ends.
        start: where its first block begins.
        sums: uint32[blocks].
        remedy: a sentence for the error: how to get the file again.
    """

    def __init__(self, path: Path, content: Array, start: int, sums: Array, remedy: str = "") -> None:
        self.path, self._content, self.start, self._sums, self._remedy = path, content, start, sums, remedy
        self._good = bytearray(len(sums))

    def check(self, first: int, end: int) -> None:
        """Check the blocks that hold the file's bytes [first, end).

        Raises:
            DataError: a block's checksum is not the one that was written.
        """
        one, last = (first - self.start) // BLOCK, (end - 1 - self.start) // BLOCK
        if self._good.find(0, one, last + 1) < 0:
            return
        for block in range(one, last + 1):
            if not self._good[block]:
                self._check(block)

    def _check(self, block: int) -> None:
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

    def __init__(self, content: Array, offset: int = 0, blocks: Blocks | None = None) -> None:
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
        place = int(np.searchsorted(self._content, value))
        found = self.rows(max(place - 1, 0), place + 1)
        if (place and not found[0] < value) or (place < len(self) and not value <= found[-1]):
            return int(np.searchsorted(self.whole(), value))  # raises: an element that is not checked misled it
        return place
