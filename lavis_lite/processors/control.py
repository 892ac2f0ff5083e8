"""Control tokens in templates: the only way for a text to bring in a tokenizer's own control tokens.

Captions, questions and prompts are data: "</s>" in them is four characters, not the end of a text. A template that
needs a control token, such as the turns of a chat model, marks it.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, which no text that is exchanged has"""
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")


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
