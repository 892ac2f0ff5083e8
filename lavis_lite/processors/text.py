"""Text processors under LAVIS' names: deterministic clean-up of captions and questions."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s+")


class TextProcessor(BaseProcessor):
    """The base of text processors: how they shorten a text."""

    is_random = False
    keeps_words: ClassVar[bool] = False
    """whether letters and digits of a text stay unless it is cut; then a text with one does not become empty"""

    def cuts(self, item: Any) -> bool:
        """Whether the end of a text is left out."""
        return False


def _may_exceed(text: Any, words: int) -> bool:
    """Whether a text can have more words: each takes at least a letter and a blank."""
    return len(str(text)) > 2 * words


def _first_words(text: str, most: int) -> str:
    return " ".join(text.split(" ")[:most])


@registry.register_processor("blip_caption")
class BlipCaption(TextProcessor):
    """Caption -> lower case, the marks `.!"()*#:;~` and runs of white space as one blank, cut to `max_words`.

    Args:
        prompt: put before the caption unchanged ("a photo of "); its words do not count.
        max_words: words kept.
    """

    keeps_words = True

    def __init__(self, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """Cleaned caption of a raw one."""
        return self.prompt + _first_words(self._plain(item), self.max_words)

    def cuts(self, item: Any) -> bool:
        """Whether words of a caption are left out because it has more than `max_words`."""
        return _may_exceed(item, self.max_words) and self._plain(item).count(" ") >= self.max_words

    def _plain(self, item: Any) -> str:
        return _SPACES.sub(" ", _PUNCTUATION.sub(" ", str(item).lower())).strip(" ")


@registry.register_processor("blip_question")
class BlipQuestion(TextProcessor):
    """Question -> lower case, the marks `.!"()*#:;~` removed, cut to `max_words`; the question mark stays.

    Args:
        max_words: words kept.
    """

    keeps_words = True

    def __init__(self, max_words: int = 50) -> None:
        self.max_words = max_words

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """Cleaned question of a raw one."""
        return _first_words(self._plain(item), self.max_words)

    def cuts(self, item: Any) -> bool:
        """Whether words of a question are left out because it has more than `max_words`."""
        return _may_exceed(item, self.max_words) and self._plain(item).count(" ") >= self.max_words

    def _plain(self, item: Any) -> str:
        return _PUNCTUATION.sub("", str(item).lower()).rstrip(" ")


@registry.register_processor("as_written")
class AsWritten(TextProcessor):
    """A text without outer white space, otherwise unchanged: for dialogues, which keep their case and marks."""

    keeps_words = True

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """The text."""
        return str(item).strip()
