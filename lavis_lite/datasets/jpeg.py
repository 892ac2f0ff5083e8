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
_START, _NOTES = b"\xff\xd8\xff", b"\xff\xe1"
"""how a JPEG begins; the marker of EXIF and XMP, which cannot occur within compressed data"""
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
    if _NOTES not in content:
        return pixels
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return upright(pixels, orientation(image))
