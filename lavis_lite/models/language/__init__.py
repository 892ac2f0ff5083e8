"""Frozen language models behind one contract: decoder-only and encoder-decoder, over transformers' Auto classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_lite.moved import lazy_names

if TYPE_CHECKING:
    from lavis_lite.models.language.build import build_language_model
    from lavis_lite.models.language.contract import GenerationConfig, LanguageModel
    from lavis_lite.models.language.tokens import Limits

__all__ = ["GenerationConfig", "LanguageModel", "Limits", "build_language_model"]

_HERE = "lavis_lite.models.language."
__getattr__, __dir__ = lazy_names(__name__, {
    "GenerationConfig": _HERE + "contract", "LanguageModel": _HERE + "contract", "Limits": _HERE + "tokens",
    "build_language_model": _HERE + "build"})
