"""JPEG bytes -> pixels by libjpeg-turbo directly (simplejpeg), which saves the way through Pillow's own image memory.

The decoder and its settings (accurate DCT, smooth chroma) are those of Pillow, so that the pixels are Pillow's; where
simplejpeg is not installed, or refuses a file, Pillow decodes it. Decoding at 1/2 or 1/4 of the size in the DCT would
be faster still, but moves values by up to 14 grey levels, so it is not done.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

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
_COLOUR_SPACES = {"RGB": ("YCbCr", "RGB"), "L": ("Gray",)}
"""Pillow's mode -> libjpeg's colour spaces; CMYK is Pillow's business, which knows Adobe's inverted kind"""
_SLACK = 16 * 2**20


def decode_jpeg(stream: BinaryIO, image: Image.Image) -> Pixels | None:
    """Upright RGB pixels of a JPEG; None: let Pillow decode it.

    Args:
        stream: the file's bytes, seekable.
        image: the same, opened by Pillow, not loaded: its header has been checked.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in _COLOUR_SPACES:
        return None
    data = _content(stream, image.width * image.height)
    try:
        # Pillow's reading of the header and libjpeg's must agree, or a file could pass the size check as a small one
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size or colours not in _COLOUR_SPACES[image.mode]:
            return None
        pixels: Any = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # damaged, or a kind that simplejpeg does not know: Pillow says which
        return None
    return upright(pixels, orientation(image))


def _content(stream: BinaryIO, pixels: int) -> bytes:
    """The whole file, or nothing of one that is absurdly long for its picture."""
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return stream.read() if length <= 8 * pixels + _SLACK else b""
