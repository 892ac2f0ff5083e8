"""What the frozen language model inside a whole checkpoint needs besides a rename.

transformers stores tied tensors once, and its BLIP-2 repositories have a longer vocabulary than the language model
they began with: rows were added for the image token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lavis_lite.models.checkpoints.report import LoadReport

PREFIX = "language_model.model."
"""Where transformers' model lies within ours."""


def language_kind(model: Any) -> str | None:
    """opt | t5 | llm: what LAVIS calls the model's language model; None: it has none."""
    language_model = getattr(model, "language_model", None)
    if language_model is None:
        return None
    config = language_model.model.config
    if config.is_encoder_decoder:
        return "t5"
    return "opt" if config.model_type == "opt" else "llm"


def vocabulary_names(model: Any) -> tuple[set[str], set[str]]:
    """Names in the model of its language model's word embeddings, and of its output layer; a row is a word."""
    language_model = getattr(model, "language_model", None)
    if language_model is None:
        return set(), set()
    inner = language_model.model
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    found = []
    for module in (inner.get_input_embeddings(), inner.get_output_embeddings()):
        own = {id(value) for value in module.parameters()} if module is not None else set()
        found.append({PREFIX + name for name, value in parameters.items() if id(value) in own})
    return found[0], found[1]


def fit_language_model(model: Any, tensors: Mapping[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The same tensors, with the words that the model does not have cut off, and an output layer that was tied.

    Args:
        model: with or without a language model.
        tensors: under our names, of a repository in transformers' format.
        report: takes the names that were cut.
    """
    fitted = dict(tensors)
    if not any(name.startswith(PREFIX) for name in fitted):
        return fitted
    words, output = vocabulary_names(model)
    stored = next((fitted[name] for name in sorted(words) if name in fitted), None)
    for name in output - words:
        if stored is not None and name.endswith(".weight"):
            fitted.setdefault(name, stored)
    own = model.state_dict()
    for name in (words | output) & fitted.keys():
        tensor, wanted = fitted[name], own[name]
        if tensor.shape[1:] == wanted.shape[1:] and len(tensor) > len(wanted):
            fitted[name] = tensor[:len(wanted)]
            report.resized.append(name)
    return fitted
