"""Captions with characters that end lines, turn the direction of writing or are no characters: nothing is shifted.

`LAVIS_LITE_ODD_CAPTIONS=10000 pytest tests/metrics/test_metrics_odd_captions.py` takes that many captions in place of
a few hundred, and asks METEOR as well where Java and pycocoevalcap are.
"""

from __future__ import annotations

import os
import random
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from lavis_lite.metrics import java_scores
from lavis_lite.metrics.captions import TokenizedCaptions, token_scores, tokenized
from lavis_lite.metrics.java_scores import meteor_scores

COUNT = int(os.environ.get("LAVIS_LITE_ODD_CAPTIONS", "300"))
WORDS = "a the red dog cats man rides street in on two boats with under near kitchen sink and blue sky".split()
BLANKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\0", "\t", "\u3000",
          "\u00a0", " |||", "|||"]
MARKS = ["\u200f", "\u200e", "\u202e", "\u202c", "\u2066", "\ufeff", "\ud800", "\udfff", "🙂", "👍🏽",
         "🇩🇪", "\x07", "\x1b"]
NOTHING = ["", " ", ".", "...", "? !", ", ; :", "\u2028", "\0", "🙂", "\ud83d", "\u200f.", "\r\n", "|||", "- -"]
"""captions without a word"""


def tag(number: int) -> str:
    """A word that one caption alone has."""
    return "zq" + "".join("bcdfghklmp"[int(digit)] for digit in f"{number:05}")


def odd(words: list[str], dice: random.Random) -> str:
    """The words with odd characters between and around them."""
    text = dice.choice([*MARKS, "", ""])
    for word in words:
        text += word + dice.choice([" ", " ", dice.choice(BLANKS)]) + dice.choice(["", "", f"{dice.choice(MARKS)} "])
    return text + dice.choice(["", "", *BLANKS, *MARKS, ".", "!"])


def captions(count: int) -> tuple[TokenizedCaptions, TokenizedCaptions]:
    """The same captions, odd and clean; image n's have tag(n), but for some that have no word at all."""
    dice = random.Random(count)
    spoken: dict[int, list[list[str]]] = {}
    texts: dict[int, list[str]] = {}
    for number in range(count):
        spoken[number] = [[*dice.choices(WORDS, k=dice.randint(1, 9)), tag(number)] for _ in range(dice.randint(2, 4))]
        texts[number] = [odd(words, dice) for words in spoken[number]]
        if dice.random() < 0.05:
            spoken[number][0], texts[number][0] = [], dice.choice(NOTHING)
    clean = {number: [" ".join(words) for words in said] for number, said in spoken.items()}
    made = [tokenized({key: said[0] for key, said in one.items()}, {key: said[1:] for key, said in one.items()})
            for one in (texts, clean)]
    return made[0], made[1]


@pytest.fixture(scope="module")
def both() -> tuple[TokenizedCaptions, TokenizedCaptions]:
    """Made once."""
    return captions(COUNT)


def test_every_caption_keeps_its_place(both: tuple[TokenizedCaptions, TokenizedCaptions]) -> None:
    strange, clean = both
    for number, tokens, references in zip(strange.ids, strange.predictions, strange.references, strict=True):
        tags = [token for token in [*tokens, *(word for one in references for word in one)] if token.startswith("zq")]
        assert set(tags) == {tag(number)} and len(tags) == len(references) + bool(tokens), number
    assert strange.predictions == clean.predictions and strange.references == clean.references


def test_scores_are_those_of_the_clean_captions(both: tuple[TokenizedCaptions, TokenizedCaptions]) -> None:
    strange, clean = (token_scores(captions) for captions in both)
    assert strange.scores == clean.scores and strange.empty == clean.empty and strange.empty
    for name, values in strange.per_image.items():
        assert np.array_equal(values, clean.per_image[name]), name


def test_java_reads_one_line_per_caption(both: tuple[TokenizedCaptions, TokenizedCaptions]) -> None:
    strange, _ = both
    lines = "\n".join(java_scores._meteor_lines(strange)).encode("utf-8").decode("utf-8").splitlines()
    assert len(lines) == len(strange.ids)
    for number, line, references in zip(strange.ids, lines, strange.references, strict=True):
        parts = line.split(" ||| ")
        assert len(parts) == len(references) + 2 and tag(number) in parts[1], number
        assert all(java_scores._line(one).isprintable() for one in references)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(COUNT < 1000, reason="LAVIS_LITE_ODD_CAPTIONS is not at least 1000")
@pytest.mark.skipif(not shutil.which("java") or not find_spec("pycocoevalcap"), reason="needs Java and pycocoevalcap")
def test_meteor_is_that_of_the_clean_captions(both: tuple[TokenizedCaptions, TokenizedCaptions]) -> None:
    (one, each), (two, clean) = (meteor_scores(captions, patience=300) for captions in both)
    assert one == two and np.array_equal(each, clean)
