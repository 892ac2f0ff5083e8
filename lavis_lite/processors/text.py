"""Text processors under LAVIS' names: plain clean-up of captions and questions, no randomness."""

from __future__ import annotations

import random
import re
from typing import Any

from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s+")


def _first_words(text: str, most: int) -> str:
    return " ".join(text.split(" ")[:most])


@registry.register_processor("blip_caption")
class BlipCaption(BaseProcessor):
    """Caption -> lower case, the marks `.!"()*#:;~` and runs of white space as one blank, cut to `max_words`.

    Args:
        prompt: put before the caption as it is ("a photo of "); does not count as words.
        max_words: words kept.
    """

    def __init__(self, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """Cleaned caption of a raw one."""
        plain = _SPACES.sub(" ", _PUNCTUATION.sub(" ", str(item).lower())).strip(" ")
        return self.prompt + _first_words(plain, self.max_words)


@registry.register_processor("blip_question")
class BlipQuestion(BaseProcessor):
    """Question -> lower case, the marks `.!"()*#:;~` removed, cut to `max_words`; the question mark stays.

    Args:
        max_words: words kept.
    """

    def __init__(self, max_words: int = 50) -> None:
        self.max_words = max_words

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """Cleaned question of a raw one."""
        return _first_words(_PUNCTUATION.sub("", str(item).lower()).rstrip(" "), self.max_words)


@registry.register_processor("as_written")
class AsWritten(BaseProcessor):
    """A text as it is, without white space around it: for dialogues, whose case and marks belong to them."""

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """The text."""
        return str(item).strip()
