"""A contact sheet: some samples of a data set with their texts, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from lavis_lite.datasets.doctor.rows import Names, texts_of
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.protocols import ImageTable

CELL, TEXT_HEIGHT, MARGIN = 192, 66, 8
"""pixels: side of a picture's field, height of the text under it, space around both"""
_LETTERS, _LINES = 34, 5
_FONT_SIZE = 11


@dataclass(frozen=True)
class Card:
    """One sample: its title, its picture (None where it cannot be read) and its text."""

    title: str
    picture: Image.Image | None
    text: str


def cards(dataset: ImageTable, names: Names, split: str, count: int) -> list[Card]:
    """`count` samples, evenly spread over the different files of a data set."""
    return [_card(dataset, names.first_row[name], split) for name in names.spread(count)]


def _card(dataset: ImageTable, number: int, split: str) -> Card:
    row = dataset.table[number]
    text = "; ".join(f"{'' if kind == 'caption' else kind[0].upper() + ': '}{words}" for kind, words in texts_of(row))
    try:
        return Card(f"{split} {number}", _picture(dataset.folder, row["image"]), text)
    except BadSample as fault:
        return Card(f"{split} {number}", None, f"{fault.path}: {fault.reason}")


def _picture(folder: ImageFolder, name: str) -> Image.Image:
    if folder.key != "video":
        image: Image.Image = folder.load(name)
        return image
    with folder.load(name) as video:
        (frame,) = video.frames([len(video) // 2])
        return Image.fromarray(frame)


def draw_sheet(shown: Sequence[Card], columns: int = 6) -> Image.Image:
    """The cards in rows of `columns`; equal cards give equal pixels."""
    columns = max(min(columns, len(shown)), 1)
    width, height = CELL + 2 * MARGIN, CELL + TEXT_HEIGHT + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, -(-max(len(shown), 1) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for place, card in enumerate(shown):
        left, top = place % columns * width + MARGIN, place // columns * height + MARGIN
        _draw_picture(sheet, pen, card, left, top)
        lines = textwrap.wrap(" ".join(card.text.split()), _LETTERS, max_lines=_LINES - 1, placeholder=" ...")
        pen.text((left, top + CELL + 2), "\n".join([card.title, *lines]), fill="black", font=font, spacing=1)
    return sheet


def _draw_picture(sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    if card.picture is None:
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="red", width=2)
        return
    scale = CELL / max(card.picture.size)
    size = tuple(max(round(side * scale), 1) for side in card.picture.size)
    small = card.picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
