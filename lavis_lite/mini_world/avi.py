"""JPEG frames -> an AVI file (motion JPEG), without a package for videos."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_KEY_FRAME = 0x10


def motion_jpeg(frames: Sequence[bytes], width: int, height: int, rate: int = 4) -> bytes:
    """The file's content.

    Args:
        frames: JPEG files, at least one, all of the same size.
        width, height: of the frames, pixels.
        rate: frames per second.
    """
    largest = max(map(len, frames))
    main = struct.pack("<14I", 1_000_000 // rate, largest * rate, 0, _KEY_FRAME, len(frames), 0, 1, largest, width,
                       height, 0, 0, 0, 0)
    stream = struct.pack("<4s4sIHHIIIIIIII4H", b"vids", b"MJPG", 0, 0, 0, 0, 1, rate, 0, len(frames), largest,
                         0xFFFFFFFF, 0, 0, 0, width, height)
    picture = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    header = _listed(b"hdrl", _chunk(b"avih", main) + _listed(b"strl", _chunk(b"strh", stream)
                                                              + _chunk(b"strf", picture)))
    movie, index, offset = b"", b"", 4
    for frame in frames:
        chunk = _chunk(b"00dc", frame)
        index += struct.pack("<4sIII", b"00dc", _KEY_FRAME, offset, len(frame))
        movie, offset = movie + chunk, offset + len(chunk)
    return _chunk(b"RIFF", b"AVI " + header + _listed(b"movi", movie) + _chunk(b"idx1", index))


def _chunk(name: bytes, content: bytes) -> bytes:
    """Name, length and content; chunks begin at even offsets."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _listed(name: bytes, content: bytes) -> bytes:
    return _chunk(b"LIST", name + content)
