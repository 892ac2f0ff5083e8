"""Control tokens in templates: the only way to put a tokenizer's own control tokens into a text.

Captions, questions and prompts are data: "</s>" in them is four characters, not the end of a text. A template that
needs a control token, such as the turns of a chat model, marks it.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which exchanged texts do not contain"""
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")


def control_token(name: str) -> str:
    r"""A control token, marked for a template, for example `control_token("<|im_end|>")`.

    In YAML, between double quotes: "\uFDD0<|im_end|>\uFDD1".

    Args:
        name: the token in the tokenizer's spelling.
    """
    return f"{OPEN}{name}{CLOSE}"


def without_marks(text: str) -> str:
    """A text without marks, so that it contains no control tokens."""
    return _MARKS.sub("", text)


def without_control_tokens(text: str) -> str:
    """A text without its marked control tokens, for tokenizers that lack them."""
    return without_marks(MARKED.sub("", text))
