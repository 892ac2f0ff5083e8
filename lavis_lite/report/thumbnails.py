"""Small JPEGs of pictures, within the bytes that a page may have."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from lavis_lite.datasets.media.images import MAX_PIXELS, BadSample, decode_rgb
from lavis_lite.errors import DataError
from lavis_lite.processors.rgb import to_rgb
from lavis_lite.report.sample import Picture

BUDGET = 36 * 2**20
"""bytes of base64 for all thumbnails of a page"""
MOST_BYTES = 24 * 1024
SIDES = ((600, 320), (2000, 240))
"""up to this number of pictures -> pixels of the longer side; for more pictures: SMALL"""
SMALL = 160
QUALITIES = (82, 68, 52, 36, 20)
_AT_ONCE = 64
"""pictures in memory at once"""


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as base64, or the reason why it is missing."""

    data: str = ""
    error: str = ""


def thumbnails(pictures: Sequence[Picture], budget: int = BUDGET) -> Iterator[Thumbnail]:
    """One thumbnail per picture, in order. Files are read one after the other; several threads make the pictures.

    Args:
        pictures: all pictures of a page, each once.
        budget: bytes of base64 for all of them.
    """
    most = min(MOST_BYTES, budget * 3 // 4 // max(len(pictures), 1))
    side = next((pixels for count, pixels in SIDES if len(pictures) <= count), SMALL)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pictures), _AT_ONCE):
            loaded = [_load(picture) for picture in pictures[start:start + _AT_ONCE]]
            yield from pool.map(lambda one: _made(one, side, most), loaded)


def _load(picture: Picture) -> tuple[str, bytes | Image.Image | str]:
    """(name, content), or (name, the reason why it is missing)."""
    try:
        return picture.name, picture.load()
    except DataError as error:
        return picture.name, str(error)


def _made(loaded: tuple[str, bytes | Image.Image | str], side: int, most: int) -> Thumbnail:
    name, content = loaded
    if isinstance(content, str):
        return Thumbnail(error=content)
    try:
        image = _decoded(content, name, side) if isinstance(content, bytes) else content
    except DataError as error:
        return Thumbnail(error=str(error))
    return Thumbnail(base64.b64encode(jpeg(image, side, most)).decode("ascii"))


def _decoded(content: bytes, name: str, side: int) -> Image.Image:
    """An upright RGB image of at least `side` pixels, if the file has them; large JPEGs are decoded at half size."""
    if content[:2] != b"\xff\xd8":
        return decode_rgb(content, name)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadSample(name, "has too many pixels")
            image.draft("RGB", (side, side))
            image.load()
            return to_rgb(image)
    except OSError:  # an unusual JPEG; the other reader is more tolerant
        return decode_rgb(content, name)


def jpeg(image: Image.Image, side: int, most: int) -> bytes:
    """A JPEG of at most `side` pixels and, if possible, `most` bytes. First the quality is lowered, then the size."""
    small = image.convert("RGB")
    while True:
        small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        for quality in QUALITIES:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=quality)
            if stream.tell() <= most:
                return stream.getvalue()
        if side <= 48:
            return stream.getvalue()
        side = side * 3 // 4
