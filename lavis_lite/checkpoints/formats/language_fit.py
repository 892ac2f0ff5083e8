"""What the frozen language model inside a whole checkpoint needs besides a rename.

transformers stores tied tensors once, and its BLIP-2 repositories have a longer vocabulary than the language model
they began with: rows were added for the image token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import LANGUAGE_MODEL
from lavis_lite.checkpoints.report import LoadReport
from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.blip2.config import Blip2OPTConfig, Blip2T5Config, Blip2VicunaConfig
from lavis_lite.models.language.contract import language_model_of

LOGITS_BIAS = LANGUAGE_MODEL + "final_logits_bias"
"""BART's: one column per word"""
KINDS = ((Blip2OPTConfig, "opt"), (Blip2T5Config, "t5"), (Blip2VicunaConfig, "llm"))
"""section of an arch -> what `language_kind` calls its language models"""


def _inner(model: object) -> Any:
    """transformers' model behind a model's language model; None: it has none that is held as those of this package."""
    language_model = language_model_of(model)
    return None if language_model is None else language_model.model


def language_kind(model: object) -> str | None:
    """opt | t5 | llm: what LAVIS calls the model's language model; None: it has none."""
    config = getattr(_inner(model), "config", None)
    if config is None:
        return None
    if config.is_encoder_decoder:
        return "t5"
    return "opt" if config.model_type == "opt" else "llm"


def refuse_other_kind(model: object, config: type, source: str | Path) -> None:
    """Refuse a checkpoint of this project over another kind of language model: equal widths hide it.

    Args:
        model: that it would be loaded into.
        config: class of the section of the arch that the checkpoint records.
        source: the checkpoint.

    Raises:
        CheckpointError: that arch has language models of another kind.
    """
    own = language_kind(model)
    found = next((kind for known, kind in KINDS if issubclass(config, known)), own)
    if found != own:
        raise CheckpointError(f"{source} does not fit the model, nothing was loaded. It was trained over a language "
                              f"model of another kind than that of {type(model).__name__}, where its projection would "
                              "mean nothing. Begin with stage 1 and train stage 2 over the new one.")


def vocabulary_names(model: object) -> tuple[set[str], set[str]]:
    """Names in the model of its language model's word embeddings, and of its output layer; a row is a word."""
    inner = _inner(model)
    if inner is None:
        return set(), set()
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    found = []
    for module in (inner.get_input_embeddings(), inner.get_output_embeddings()):
        own = {id(value) for value in module.parameters()} if module is not None else set()
        found.append({LANGUAGE_MODEL + name for name, value in parameters.items() if id(value) in own})
    return found[0], found[1]


def fit_language_model(model: BaseModel, tensors: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The same tensors, with the words that the model does not have cut off, and an output layer that was tied.

    Args:
        model: with or without a language model.
        tensors: under our names, of a repository in transformers' format.
        report: takes the names that were cut.
    """
    fitted = dict(tensors)
    if not any(name.startswith(LANGUAGE_MODEL) for name in fitted):
        return fitted
    words, output = vocabulary_names(model)
    stored = next((fitted[name] for name in sorted(words) if name in fitted), None)
    for name in output - words:
        if stored is not None and name.endswith(".weight"):
            fitted.setdefault(name, stored)
    own = model.state_dict()
    for name in word_axes(model) & fitted.keys():
        tensor, wanted = fitted[name], own[name]
        axis = 1 if name == LOGITS_BIAS else 0
        if tensor.ndim == wanted.ndim and tensor.shape[axis] > wanted.shape[axis]:
            fitted[name] = tensor.narrow(axis, 0, wanted.shape[axis])
            report.resized.append(name)
    return fitted


def word_axes(model: BaseModel) -> set[str]:
    """Names of all tensors of the model's language model that have a row (or a column) for every word."""
    words, output = vocabulary_names(model)
    return words | output | ({LOGITS_BIAS} & model.state_dict().keys())


def with_words(model: BaseModel, tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The same tensors for a vocabulary of at least `count` words.

    A new word is the mean of all others, so that its logit is their mean too: it is never the likeliest.
    """
    grown = dict(tensors)
    for name in word_axes(model) & grown.keys():
        axis = 1 if name == LOGITS_BIAS else 0
        more = count - grown[name].shape[axis]
        if more > 0:
            mean = grown[name].double().mean(axis, keepdim=True).to(grown[name].dtype)
            grown[name] = torch.cat([grown[name], *[mean] * more], axis)
    return grown
