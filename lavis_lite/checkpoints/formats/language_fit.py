"""What the frozen language model inside a whole checkpoint needs besides a rename.

transformers stores tied tensors once, and its BLIP-2 repositories have a longer vocabulary than the language model
they began with: rows were added for the image token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import LANGUAGE_MODEL, language_kind, language_prefix
from lavis_lite.errors import CheckpointError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.language.contract import language_model_of

if TYPE_CHECKING:
    from lavis_lite.checkpoints.load import LoadReport

LOGITS_BIAS = LANGUAGE_MODEL + "final_logits_bias"
"""BART's: one column per word"""


def _inner(model: object) -> Any:
    """transformers' model behind a model's language model; None: it has none that is held as those of this package."""
    language_model = language_model_of(model)
    return None if language_model is None else language_model.model


def check_language_model(model: BaseModel, names: Iterable[str], source: str) -> None:
    """Refuse a file in LAVIS' layout with a projection to another kind of language model, even if its shape fits.

    Raises:
        CheckpointError: it is of another kind than the model's.
    """
    names = list(names)
    found, own = language_prefix(names), language_kind(model)
    if found is not None and own is not None and found != own:
        from lavis_lite.checkpoints.report import seems_to_be  # guesses, for a file that does not fit

        raise CheckpointError(f"{source} does not fit the model, nothing was loaded. It seems to be "
                              f"{seems_to_be(names)}, and this model's language model is of another kind "
                              f"({type(model).__name__}).")


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
