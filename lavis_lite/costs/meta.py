"""A model of a section on the meta device: real shapes, no memory, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis_lite.checkpoints.weights import WeightFile
from lavis_lite.config.schema import ModelConfig, NamesLanguageModel
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.language.contract import language_model_of
from lavis_lite.models.language.released import RELEASED
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.registry import registry


def meta_model(section: ModelConfig) -> BaseModel:
    """The model of a section on the meta device: real shapes, no memory, no files.

    A missing language model has the sizes of its published configuration. If a tokenizer is missing, every word is one
    token.
    """
    cls = registry.get_model_class(section.arch)
    try:
        with torch.device("meta"):
            model = cls.from_config(_with_sizes(section))
    except RuntimeError as error:
        raise ConfigError(f"model.arch={section.arch}: {cls.__name__} cannot be built on the meta device, as a dry run "
                          f"without the files does ({str(error).splitlines()[0]}). Get the missing files first, or let "
                          "its from_config read no weights.") from error
    if isinstance(model, Blip2Base) and not WeightFile("tokenizer", str(section.get("tokenizer"))).is_local():
        model.tokenizer = OneIdPerWord(model.tokenizer)  # type: ignore[assignment]
    language_model = language_model_of(model)
    if language_model is not None and isinstance(source := language_model.tokenizer.source, str):
        if not WeightFile("tokenizer", source).is_local():
            language_model.tokenizer = LanguageTokenizer(words_alone(), language_model.family,
                                                         language_model.tokenizer.encoder)
    return model


def _with_sizes(section: ModelConfig) -> ModelConfig:
    """The section with a language model that can be built here: its folder if present, else its sizes."""
    if section.get("vit_weights") == "timm":  # a download
        section = section.replaced(vit_weights="random")
    if not isinstance(section, NamesLanguageModel) or section.llm_args is not None:
        return section
    name = section.language_model_name()
    here = WeightFile("llm_model", name).local()
    if here is not None:
        return section.replaced(llm_model=str(here))
    return section.replaced(llm_args=RELEASED[name], llm_precision="bf16") if name in RELEASED else section


class OneIdPerWord:
    """Replaces a `TextTokenizer` without files: one id per word, all of them equal.

    Args:
        real: the tokenizer without its files; it has limits and special ids.
    """

    def __init__(self, real: TextTokenizer) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, texts: Sequence[str], max_length: int | None = None) -> TextTokens:
        """As `TextTokenizer`."""
        most = max_length or self.real.max_length
        return TextTokens.from_lists([[1] * min(len(text.split()) + 2, most) for text in texts], 0)


def words_alone() -> Any:
    """A tokenizer of transformers that needs no file: one id per word, and all that models ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "text": 4, "\n": 5}
    core = Tokenizer(models.WordLevel(words, unk_token="text"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>")
