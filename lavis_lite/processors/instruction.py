"""The text processor that puts a text, and what belongs to it, into an instruction of `configs/instructions.yaml`."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.config.layers import read_yaml
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.processors.text import MOST_OCR_TOKENS, lettered, without_marks
from lavis_lite.registry import registry

_FILE = read_yaml(Path(__file__).parents[1] / "configs" / "instructions.yaml")
TEMPLATES: dict[str, list[str]] = _FILE["templates"]
"""what a data set's `instruction` section may name"""
EVALUATION: dict[str, str] = _FILE["evaluation"]
"""the template that is used where nothing is drawn, by list or by data set; other lists use their first"""
PLACEHOLDER = "{}"
EXTRAS = ("choices", "context", "caption", "history", "ocr_tokens")
"""names of placeholders in a template, besides `{}`"""
_PLACEHOLDERS = re.compile(r"\{(|" + "|".join(EXTRAS) + r")\}")
_PARTS = re.compile(r"\[([^\[\]]*\{(?:" + "|".join(EXTRAS) + r")\}[^\[\]]*)\]")


@registry.register_processor("instruction")
class Instruction(BaseProcessor):
    """A question or an answer -> one of several instructions with it; a template without `{}` ignores it (captions).

    Other placeholders take extras of the question. `{choices}` becomes "(a) red (b) blue". `{ocr_tokens}` becomes the
    first 30 tokens, separated by commas. `{context}`, `{caption}` and `{history}` are texts. A part in brackets, such
    as "[Context: {context} ]", is left out if an extra of it is missing.

    Args:
        templates: the name of a list (a key of `TEMPLATES`), or your own list.
        draw: take any of them, by the sample's random numbers; false: always the same one, the list's evaluation
            template or the first of your own.

    Raises:
        ConfigError: an unknown list, or a template with more than one `{}`.
    """

    def __init__(self, templates: str | Sequence[str] = "vqa", draw: bool = True) -> None:
        if isinstance(templates, str):
            self.templates = _named(templates, draw)
        else:
            self.templates = list(templates) if draw else list(templates[:1])
        bad = [text for text in self.templates if not isinstance(text, str) or text.count(PLACEHOLDER) > 1]
        if bad or not self.templates:
            raise ConfigError("instruction: templates must be texts with at most one {}"
                              + (f", not {bad[0]!r}." if bad else "; the list is empty."))
        self.placeholders = frozenset(name for text in self.templates for name in _PLACEHOLDERS.findall(text)) - {""}

    def __call__(self, item: Any, rng: random.Random | None = None, extras: Mapping[str, Any] | None = None) -> str:
        """The text in its instruction; `extras` fill the placeholders of their names."""
        drawn = self.templates[0] if len(self.templates) == 1 else (rng or random).choice(self.templates)
        given = {name: without_marks(_text(name, value)) for name, value in (extras or {}).items()}
        whole = _PARTS.sub(lambda part: part[1] if all(
            given.get(name) for name in _PLACEHOLDERS.findall(part[1]) if name) else "", drawn)
        text = without_marks(str(item))
        return _PLACEHOLDERS.sub(lambda name: given.get(name[1], "") if name[1] else text, whole)


def _named(name: str, draw: bool) -> list[str]:
    """The templates of a list; without `draw` the one for evaluation."""
    if not draw and name in EVALUATION:
        return [EVALUATION[name]]
    if name not in TEMPLATES:
        known = list(TEMPLATES) if draw else [*TEMPLATES, *EVALUATION]
        raise ConfigError(f"instruction: there is no list of templates {name!r}; {did_you_mean(name, known)} "
                          f"A template of your own goes into a list: [{name!r}].")
    return list(TEMPLATES[name]) if draw else [TEMPLATES[name][0]]


def _text(name: str, value: Any) -> str:
    """An extra as text: options get letters, OCR tokens commas."""
    if name == "choices":
        return lettered(value)
    return ", ".join(value[:MOST_OCR_TOKENS]) if name == "ocr_tokens" else str(value)
