"""Pictures of where a model looks: what is bright, what is dark, and which pixels the model saw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from lavis_lite.processors.image import BlipImageEval, ClipImageEval
from lavis_lite.report.overlay import DARKEST, as_seen, fitted, overlay, sheet


def test_the_picture_is_bright_where_the_map_is_high() -> None:
    white = Image.new("RGB", (80, 80), "white")
    values = np.zeros((4, 4))
    values[1, 2] = 0.5
    seen = np.asarray(overlay(white, values), float)[..., 0]
    assert seen[30, 50] == seen.max() > 240 and seen[70, 10] == pytest.approx(255 * DARKEST, abs=1)
    dim = np.asarray(overlay(white, values, most=1.0), float)[..., 0]
    assert dim[30, 50] == pytest.approx(255 * (DARKEST + (1 - DARKEST) / 2), abs=8)
    assert np.asarray(overlay(white, np.zeros((4, 4)))).max() == round(255 * DARKEST)


def test_colours_stay() -> None:
    red = np.asarray(overlay(Image.new("RGB", (8, 8), (200, 100, 0)), np.ones((2, 2))))
    assert (red == (200, 100, 0)).all()


def test_a_sheet_has_the_picture_and_a_tile_for_each_word() -> None:
    picture = Image.new("RGB", (40, 20), "blue")
    drawn = sheet(picture, ["a", "blue", "field"] * 3, np.ones((9, 2, 2)), tile=100)
    assert drawn.size == (6 * 108 + 8, 2 * 80 + 8)
    assert [drawn.getpixel((8 + 108 * column + 50, 8 + 80 * row + 25)) for row in (0, 1) for column in range(5)] == [
        (0, 0, 255)] * 9 + [(255, 255, 255)]
    assert sheet(picture, [], np.ones((0, 2, 2)), tile=10).size == (26, 43)


def test_long_words_are_cut() -> None:
    font = ImageFont.load_default(15)
    assert fitted("red", font, 100) == "red"
    short = fitted("incomprehensibilities", font, 100)
    assert short.endswith("...") and font.getlength(short) <= 100


def test_a_picture_as_the_processor_sees_it() -> None:
    picture = Image.new("RGB", (120, 60), "red")
    picture.paste("green", (30, 0, 90, 60))
    whole, middle = (as_seen(kind(image_size=30), picture) for kind in (BlipImageEval, ClipImageEval))
    assert whole.size == middle.size == (30, 30)
    assert whole.getpixel((1, 15))[0] > 200 and middle.getpixel((1, 15))[0] < 60
    assert as_seen(lambda image: image, picture.convert("L")).mode == "RGB"
