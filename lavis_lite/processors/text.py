"""Text processors under LAVIS' names (plain clean-up, no randomness), and control tokens in templates.

Captions, questions and prompts are data: "</s>" in them is four characters, not the end of a text. A template that
needs a control token, such as the turns of a chat model, marks it.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import Any, ClassVar

from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which no text that is exchanged has"""
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
MOST_OCR_TOKENS = 30
"""of a picture that a prompt names"""


def control_token(name: str) -> str:
    r"""A control token as it stands in a template, for example `control_token("<|im_end|>")`.

    In YAML, between double quotes: "\uFDD0<|im_end|>\uFDD1".

    Args:
        name: the token as the tokenizer writes it.
    """
    return f"{OPEN}{name}{CLOSE}"


def without_marks(text: str) -> str:
    """A text as plain text: marks that it may contain mean nothing any more."""
    return _MARKS.sub("", text)


def without_control_tokens(text: str) -> str:
    """A text without its marked control tokens, for readers that have no such tokens."""
    return without_marks(MARKED.sub("", text))


_MARKS_OF_CAPTIONS = '.!"()*#:;~'
_PUNCTUATION = re.compile(f"[{re.escape(_MARKS_OF_CAPTIONS)}]")
_SPACES = re.compile(r"\s+")


class TextProcessor(BaseProcessor):
    """The base of text processors: how they shorten a text."""

    is_random = False
    keeps_words: ClassVar[bool] = False
    """whether letters and digits of a text stay unless it is cut; then a text with one does not become empty"""

    def cuts(self, item: Any) -> bool:
        """Whether the end of a text is left out."""
        return False


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
        text, most = str(item), self.max_words
        if len(text) <= 2 * most or len(text.split()) + sum(map(text.count, _MARKS_OF_CAPTIONS)) <= most:
            return False  # a word takes a letter and a blank, and ends at white space or a mark
        return self._plain(text).count(" ") >= most

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
        text = str(item)
        return text.count(" ") >= self.max_words and self._plain(text).count(" ") >= self.max_words

    def _plain(self, item: Any) -> str:
        return _PUNCTUATION.sub("", str(item).lower()).rstrip(" ")


@registry.register_processor("as_written")
class AsWritten(TextProcessor):
    """A text without outer white space, otherwise unchanged: for dialogues, which keep their case and marks."""

    keeps_words = True

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """The text."""
        return str(item).strip()


def lettered(choices: Sequence[str]) -> str:
    """["red", "blue"] -> "(a) red (b) blue"."""
    letters = string.ascii_lowercase
    names = [letters[at] if at < len(letters) else str(at + 1) for at in range(len(choices))]
    return " ".join(f"({name}) {choice}" for name, choice in zip(names, choices, strict=True))
