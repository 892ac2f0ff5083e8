"""How long a video file says that it is: files that a download or a full disk cut off are known by it.

A cut file often opens, and seems to be a shorter video. Only the heads of a file's outermost parts are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BOXES = {b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"uuid", b"styp", b"sidx", b"udta", b"meta"}
"""outermost parts of MP4 and MOV (ISO/IEC 14496-12); whatever else follows them is padding"""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""marks of the two outermost parts of Matroska and WebM (RFC 9559)"""


def stated_size(path: Path | str) -> int:
    """The number of bytes that a file has at least, by its own account. 0: it is not MP4, MOV, Matroska or WebM.

    A file that was written as a stream states the size of its first parts alone.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        is_matroska = file.read(4) == EBML
        file.seek(0)
        return max(_matroska_ends(file) if is_matroska else _box_ends(file), default=0)


def _box_ends(file: BinaryIO) -> Iterator[int]:
    """Where each outermost box ends; the last one, or one past the end of the file, is the last."""
    start, length = 0, os.fstat(file.fileno()).st_size
    while start < length:
        file.seek(start)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if head[4:8] not in BOXES or size < 8:  # 0: up to the end of the file
            return
        start += size
        yield start


def _matroska_ends(file: BinaryIO) -> Iterator[int]:
    """Where the header and the segment end, as far as the file says so."""
    for mark in (EBML, SEGMENT):
        if file.read(4) != mark:
            return
        first = file.read(1)
        more = 8 - first[0].bit_length() if first else 8  # leading zeros count the bytes that follow
        if more > 7:
            return
        bits = 7 * (more + 1)
        size = int.from_bytes(first + file.read(more), "big") - (1 << bits)
        if size == (1 << bits) - 1:  # all ones: not known
            return
        yield file.tell() + size
        file.seek(size, os.SEEK_CUR)
