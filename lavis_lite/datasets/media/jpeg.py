"""JPEG bytes -> pixels by libjpeg-turbo directly (simplejpeg), which saves the way through Pillow's own image memory.

The decoder and its settings (accurate DCT, smooth chroma) are those of Pillow, so that the pixels are Pillow's; where
simplejpeg is not installed, or refuses a file, Pillow decodes it. Decoding at 1/2 or 1/4 of the size in the DCT would
be faster still, but moves values by up to 14 grey levels, so it is not done.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lavis_lite.processors.rgb import orientation, upright

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

Pixels = NDArray[np.uint8]
"""uint8[H, W, 3], upright RGB"""
_START = b"\xff\xd8\xff"
_MARKER, _SCAN, _NOTES = 0xFF, 0xDA, 0xE1
"""what every segment begins with; the segment before the compressed data; those of EXIF and XMP"""
_COLOUR_SPACES = ("YCbCr", "RGB", "Gray")
"""CMYK is Pillow's business, which knows Adobe's inverted kind"""


def decode_jpeg(content: bytes, max_pixels: int) -> Pixels | None:
    """Upright RGB pixels of a JPEG; None: no JPEG, too large, damaged or of a rare kind: Pillow decodes or refuses it.

    Args:
        content: the whole file.
        max_pixels: width x height above which nothing is decoded.
    """
    if simplejpeg is None or not content.startswith(_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if width * height > max_pixels or colours not in _COLOUR_SPACES:
            return None
        pixels: Any = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:  # also what Pillow only warns of
        return None
    if not _has_notes(content):
        return pixels
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return upright(pixels, orientation(image))


def _has_notes(content: bytes) -> bool:
    """Whether there is EXIF or XMP that may say how to turn the picture; True where the segments cannot be followed."""
    place = 2
    while place + 4 <= len(content) and content[place] == _MARKER:
        kind = content[place + 1]
        if kind in (_SCAN, _NOTES):
            return kind == _NOTES
        # a marker may be padded with more bytes 255
        place += 1 if kind == _MARKER else 2 + int.from_bytes(content[place + 2:place + 4], "big")
    return True
