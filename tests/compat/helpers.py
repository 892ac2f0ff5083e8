"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lavis_lite.checkpoints.formats.key_maps import to_lavis

MINI = {"tokenizer": "mini", "qformer_hidden_size": 128, "qformer_layers": 4, "qformer_heads": 4,
        "qformer_intermediate_size": 256, "qformer_max_positions": 64, "qformer_weights": None, "qformer_dropout": 0.0,
        "qformer_initializer_range": 0.08}
"""sizes of the packaged models"""
VISION = {"vit_model": "mini", "img_size": 64, "vit_precision": "fp32", "num_query_token": 12}


def lavis_tensors(tensors: Mapping[str, Tensor], language_model: str = "opt") -> dict[str, Tensor]:
    """Tensors of the package's names under LAVIS' names."""
    return to_lavis(tensors, language_model).tensors
