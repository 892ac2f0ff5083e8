"""A Q-Former that starts as BERT (BLIP-2, section 3.1): BERT's weights, cross-attention random.

The query half starts as a copy of BERT's feed-forward layers, as in LAVIS; [DEC] is a new word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import QFORMER_MAP
from lavis_lite.checkpoints.load import in_model_dtype
from lavis_lite.checkpoints.reading import check_folder
from lavis_lite.errors import CheckpointError
from lavis_lite.finite import check_weights
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.torchvision_shim import ensure_torchvision

ROWS_MAY_BE_FEWER = {"embeddings.word_embeddings.weight", "lm_head.bias"}
"""BERT has no [DEC]: the last row keeps its random start"""


def bert_name(name: str) -> str | None:
    """BERT's name of a Q-Former parameter, which LAVIS keeps; None for cross-attention, which BERT lacks."""
    (theirs,) = QFORMER_MAP.to_theirs({f"qformer.{name}": torch.empty(0)}).tensors
    return None if ".crossattention." in theirs else theirs.removeprefix("Qformer.").replace("_query.", ".")


def initialise_from_bert(qformer: QFormer, source: str, allow_non_finite: bool = False) -> list[str]:
    """Copy BERT's weights in.

    Args:
        qformer: of BERT's width; fewer layers take BERT's first ones.
        source: name or folder that transformers can load as a BERT with its masked-word head.
        allow_non_finite: take tensors that hold NaN or infinity too.

    Returns:
        Names of parameters that stay random (cross-attention).

    Raises:
        CheckpointError: the weights cannot be had, lack a tensor, or have other shapes.
    """
    weights = bert_state(source)
    own = {bert_name(name) or name: parameter for name, parameter in qformer.named_parameters()}
    check_weights(in_model_dtype(weights, own), source, allow_non_finite)
    untouched = []
    for name, parameter in qformer.named_parameters():
        wanted = bert_name(name)
        if wanted is None:
            untouched.append(name)
            continue
        if wanted not in weights:
            raise CheckpointError(f"model.qformer_weights: {source!r} has no tensor {wanted} (for {name}); it must be "
                                  "a BERT with its masked-word head, such as bert-base-uncased.")
        _copy(name, parameter, weights[wanted], source)
    return untouched


def _copy(name: str, parameter: Tensor, value: Tensor, source: str) -> None:
    fits = parameter.shape == value.shape
    if not fits and name in ROWS_MAY_BE_FEWER:
        fits = parameter.shape[1:] == value.shape[1:] and len(value) <= len(parameter)
    if not fits:
        raise CheckpointError(f"model.qformer_weights: {name} has shape {tuple(parameter.shape)} but {source!r} gives "
                              f"{tuple(value.shape)}; choose Q-Former sizes of that BERT, or qformer_weights: null.")
    with torch.no_grad():
        parameter[:len(value)].copy_(value)


def bert_state(source: str) -> dict[str, Tensor]:
    """The tensors that a source has: transformers draws those that it lacks at random.

    Raises:
        CheckpointError: it cannot be had, or has weights stored as integers.
    """
    ensure_torchvision()  # transformers may import it
    from transformers import BertForMaskedLM

    check_folder(source, "model.qformer_weights")
    try:
        loaded: Any = BertForMaskedLM.from_pretrained(source, output_loading_info=True)
        model, info = loaded
        return {name: value for name, value in model.state_dict().items() if name not in info["missing_keys"]}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model.qformer_weights: cannot load BERT from {source!r} ({str(error).splitlines()[0]}). Give a folder "
            "that holds it, or set qformer_weights: null to start from random weights.") from error
