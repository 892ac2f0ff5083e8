"""Answers as the evaluation scripts compare them: marks, case, number words, articles and contractions.

`normalise` cleans as the official VQA script does, `normalise_textvqa` as the evaluator of TextVQA does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))}}
_ARTICLES = ("a", "an", "the")
_MARKS = ";/[]\"{}()=+\\_-><@`,?!"
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
"""the script passes a flag where the number of replacements belongs, and so removes this many"""
_CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _without_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:index] + word[index + 1:] for index, letter in enumerate(word) if letter == "'")


_RESTORED = {"somebody'd": "somebodyd",  # the script's own slip
           **{broken: word for word in _CONTRACTIONS.split() for broken in _without_one_apostrophe(word)}}


def _clean_marks(text: str) -> str:
    """Marks become blanks, or vanish where the text has one beside a blank or a comma between digits."""
    cleaned, thousands = text, _THOUSANDS.search(text) is not None
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if thousands or beside_blank else " ")
    return _PERIOD.sub("", cleaned, count=_MOST_PERIODS)


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """An answer as the official script compares it: marks, case, number words, articles, contractions."""
    words = [_NUMBERS.get(word, word) for word in _clean_marks(text).lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=100_000)
def normalise_textvqa(text: str) -> str:
    """An answer as TextVQA's own evaluator compares it.

    Commas and question marks vanish first, and a possessive 's becomes a word: "s,j,l" is "sjl" and "macy's" is
    "macy 's". What follows is `normalise`; as no comma is left, no text counts as one with thousands separators.

    Source: EvalAIAnswerProcessor of facebookresearch/mmf (pythia, M4C).
    """
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def single_line(text: str) -> str:
    """A text with line breaks and tabs as blanks, and no blanks around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()
