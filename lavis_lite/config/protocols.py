"""Protocols of model sections beyond `ModelConfig`; any section with the keys has the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lavis_lite.models.language.load_options import LMLoadOptions


@runtime_checkable
class NamesLanguageModel(Protocol):
    """Names a frozen language model, which is fetched and loaded with the section's other files."""

    llm_args: dict[str, Any] | None
    """its configuration instead of that of its folder; its weights are then random"""
    llm_tokenizer: str | None
    """folder or hub name of its tokenizer; None: that of the language model"""
    llm_precision: Any
    """auto | fp32 | fp16 | bf16, of its weights"""

    def language_model_name(self) -> str:
        """Folder or hub name."""
        ...


@runtime_checkable
class HoldsLanguageModel(NamesLanguageModel, Protocol):
    """Also sets how the language model is loaded: quantised, over several devices, with adapters."""

    def setup(self) -> LMLoadOptions:
        """How it is loaded."""
        ...
