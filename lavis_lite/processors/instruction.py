"""The text processor that puts a text into an instruction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.processors.templates import EVALUATION, TEMPLATES
from lavis_lite.registry import registry

PLACE = "{}"


@registry.register_processor("instruction")
class Instruction(BaseProcessor):
    """A question or an answer -> one of several instructions with it; a template without `{}` stands alone (captions).

    Args:
        templates: the name of a list (caption, vqa, vqg), or your own list.
        draw: take any of them, by the sample's random numbers; false: always the same one, the list's evaluation
            template or the first of your own.

    Raises:
        ConfigError: an unknown list, or a template with more than one `{}`.
    """

    def __init__(self, templates: str | Sequence[str] = "vqa", draw: bool = True) -> None:
        if isinstance(templates, str):
            if templates not in TEMPLATES:
                hint = did_you_mean(templates, TEMPLATES)
                raise ConfigError(f"instruction: there is no list of templates {templates!r}; {hint} "
                                  f"A template of your own goes into a list: [{templates!r}].")
            self.templates = list(TEMPLATES[templates]) if draw else [EVALUATION[templates]]
        else:
            self.templates = list(templates) if draw else list(templates[:1])
        bad = [text for text in self.templates if not isinstance(text, str) or text.count(PLACE) > 1]
        if bad or not self.templates:
            raise ConfigError("instruction: templates must be texts with at most one {}"
                              + (f", not {bad[0]!r}." if bad else "; the list is empty."))

    def __call__(self, item: Any, rng: random.Random | None = None) -> str:
        """The text in its instruction."""
        drawn = self.templates[0] if len(self.templates) == 1 else (rng or random).choice(self.templates)
        return drawn.replace(PLACE, str(item), 1)
