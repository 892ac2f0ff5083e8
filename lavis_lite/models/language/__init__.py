"""Frozen language models behind one contract: decoder-only and encoder-decoder, over transformers' Auto classes."""

from __future__ import annotations

from lavis_lite.models.language.build import build_language_model
from lavis_lite.models.language.contract import GenerationConfig, LanguageModel
from lavis_lite.models.language.tokens import Limits

__all__ = ["GenerationConfig", "LanguageModel", "Limits", "build_language_model"]
