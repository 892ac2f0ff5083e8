"""A contact sheet: some samples of a data set with their texts, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT_HEIGHT, MARGIN = 192, 66, 8
"""pixels: side of a picture's field, height of the text under it, space around both"""
_LETTERS, _LINES = 34, 5
_FONT_SIZE = 11


@dataclass(frozen=True)
class Thumbnail:
    """One sample: its title, its picture (None if it cannot be read) and its text."""

    title: str
    picture: Image.Image | None
    text: str


def draw_sheet(shown: Sequence[Thumbnail], columns: int = 6) -> Image.Image:
    """The samples in rows of `columns`; equal samples give equal pixels."""
    columns = max(min(columns, len(shown)), 1)
    width, height = CELL + 2 * MARGIN, CELL + TEXT_HEIGHT + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, -(-max(len(shown), 1) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for number, one in enumerate(shown):
        left, top = number % columns * width + MARGIN, number // columns * height + MARGIN
        _draw_picture(sheet, pen, one, left, top)
        lines = textwrap.wrap(" ".join(one.text.split()), _LETTERS, max_lines=_LINES - 1, placeholder=" ...")
        pen.text((left, top + CELL + 2), "\n".join([one.title, *lines]), fill="black", font=font, spacing=1)
    return sheet


def _draw_picture(sheet: Image.Image, pen: ImageDraw.ImageDraw, one: Thumbnail, left: int, top: int) -> None:
    if one.picture is None:
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="red", width=2)
        return
    scale = CELL / max(one.picture.size)
    size = tuple(max(round(side * scale), 1) for side in one.picture.size)
    small = one.picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
