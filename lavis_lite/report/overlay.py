"""Pictures of where a model looks: the picture is bright where a map is high, and dark elsewhere.

Colours stay as they are, so that a map does not hide what it points to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lavis_lite.processors.image import ImageProcessor, to_rgb

DARKEST = 0.2
"""brightness where a map is 0"""
TILE = 192
"""pixels per side of a picture in a sheet"""
LABEL, GAP, PER_ROW = 30, 8, 6
PAPER, INK = (255, 255, 255), (32, 32, 36)

Map = NDArray[np.floating[Any]]


def as_seen(processor: Any, picture: Image.Image) -> Image.Image:
    """A picture as an image processor cuts and resizes it, so that maps fit; another processor: the picture itself."""
    if not isinstance(processor, ImageProcessor):
        return to_rgb(picture)
    return Image.fromarray(processor.pixels(to_rgb(picture), random.Random(0)).permute(1, 2, 0).numpy())


def side_by_side(pictures: Sequence[Image.Image], tile: int = TILE) -> Image.Image:
    """Pictures of any sizes as one, each `tile` pixels high."""
    tiles = [one.resize((max(round(one.width * tile / one.height), 1), tile)) for one in map(to_rgb, pictures)]
    canvas = Image.new("RGB", (sum(one.width + GAP for one in tiles) - GAP, tile), PAPER)
    left = 0
    for one in tiles:
        canvas.paste(one, (left, 0))
        left += one.width + GAP
    return canvas


def overlay(picture: Image.Image, values: Map, most: float | None = None) -> Image.Image:
    """A picture under a map.

    Args:
        picture: of any size.
        values: float[h,w], at least 0.
        most: the value that is fully bright; None: the largest of the map.
    """
    most = float(values.max()) if most is None else most
    shares = np.clip(values / most, 0, 1) if most > 0 else np.zeros_like(values)
    light = Image.fromarray(shares.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    bright = DARKEST + (1 - DARKEST) * np.clip(np.asarray(light), 0, 1)[..., None]
    return Image.fromarray((np.asarray(to_rgb(picture), np.float32) * bright + 0.5).astype(np.uint8))


def sheet(picture: Image.Image, words: Sequence[str], maps: Map, tile: int = TILE,
          per_row: int = PER_ROW) -> Image.Image:
    """The picture, and one overlay for each of W words by maps float[W,h,w], side by side with the words below."""
    scale = tile / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    large = to_rgb(picture).resize(size, Image.Resampling.BICUBIC)
    tiles = [large, *(overlay(large, values) for values in maps)]
    columns = min(len(tiles), per_row)
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * (size[0] + GAP) + GAP, rows * (size[1] + LABEL) + GAP), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for number, (one, word) in enumerate(zip(tiles, ["", *words], strict=True)):
        left, top = GAP + number % columns * (size[0] + GAP), GAP + number // columns * (size[1] + LABEL)
        canvas.paste(one, (left, top))
        pen.text((left + size[0] / 2, top + size[1] + 4), fitted(word, font, size[0]), INK, font, "ma")
    return canvas


def fitted(text: str, font: Any, width: int) -> str:
    """A text of at most so many pixels; a longer one is cut and ends in dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
