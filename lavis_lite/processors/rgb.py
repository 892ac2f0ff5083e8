"""Any picture of Pillow -> upright 8-bit RGB with its own tones; and pixels turned upright.

Pillow's plain `convert("RGB")` clips 16-bit pixels to white and shows whatever colour lies under transparent pixels;
both are corrected here. Transparent pixels become white, because most such pictures were drawn for a white page.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = {5, 6, 7, 8}
_FLIPPED_ROWS, _FLIPPED_COLUMNS = {3, 4, 7, 8}, {2, 3, 6, 7}
"""EXIF orientations that transpose the picture, and those that then reverse its rows and its columns"""
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of a picture as upright RGB, 8 bits per channel.

    Raises:
        ValueError: float or 32-bit integer pixels of unknown range.
    """
    turned = orientation(image)
    image = _eight_bit_rgb(image)
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image


def upright(pixels: NDArray[Any], turned: int) -> NDArray[Any]:
    """Stored pixels [H, W, 3] -> upright pixels by EXIF's orientation (1..8; other values: unchanged)."""
    if turned not in _UPRIGHT:
        return pixels
    if turned in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (-1 if turned in flipped else 1 for flipped in (_FLIPPED_ROWS, _FLIPPED_COLUMNS))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8; 1 (unchanged pixels) if the header cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _EXIF_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_from_16_bit(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(_from_float(np.asarray(image)))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        page = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, shown).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(pixels: np.ndarray) -> np.ndarray:
    values = pixels.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}: neither 8 nor 16 bits")
    return ((values + 128) // 257).astype(np.uint8)


def _from_float(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):  # also true for NaN
        raise ValueError(f"float pixels from {low:g} to {high:g}: expected 0..1 or 0..255")
    return np.rint(pixels * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
