"""A Q-Former under LAVIS' names that starts as BERT, but for the queries' half, which its maker copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lavis_lite.errors import CheckpointError
from lavis_lite.models.provenance import WeightSource, mark_loaded
from lavis_lite.torchvision_shim import ensure_torchvision


def initialise_from_bert(qformer: nn.Module, source: str) -> None:
    """Copy every tensor of a BERT with its masked-word head; new words and cross-attention keep their random start.

    Raises:
        CheckpointError: it cannot be had, or has tensors of other shapes.
    """
    ensure_torchvision()
    from transformers import BertForMaskedLM

    try:
        loaded: Any = BertForMaskedLM.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model.qformer_weights: cannot load BERT from {source!r} ({str(error).splitlines()[0]}). Give a folder "
            "that holds it, or set model.qformer_weights: null to start the Q-Former from random weights.") from error
    model, info = loaded
    weights = {name: value for name, value in model.state_dict().items() if name not in info["missing_keys"]}
    copied = []
    for name, tensor in qformer.state_dict().items():
        value = weights.get(name)
        if value is None or name.endswith("position_ids"):
            continue
        if value.shape[1:] != tensor.shape[1:] or len(value) > len(tensor):
            raise CheckpointError(f"model.qformer_weights: {name} has shape {tuple(tensor.shape)}, {source!r} "
                                  f"gives {tuple(value.shape)}; choose sizes of that BERT, or qformer_weights: null.")
        with torch.no_grad():
            tensor[:len(value)].copy_(value)
        copied.append(name)
    mark_loaded(qformer, WeightSource("", "bert", source), copied)
