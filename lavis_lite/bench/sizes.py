"""Model sizes to measure, and batches of random pixels with texts of real lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.qformer.model import QFormerConfig

TEXT_WIDTH = 32
"""max_txt_len of BLIP-2's pre-training"""
CAPTION_LENGTHS = {
    9: 112, 10: 1243, 11: 4258, 12: 5188, 13: 4749, 14: 3553, 15: 2263, 16: 1436, 17: 816, 18: 492, 19: 292, 20: 194,
    21: 120, 22: 80, 23: 52, 24: 36, 25: 25, 26: 22, 27: 22, 28: 21, 29: 12, 30: 3, 31: 2, 32: 23}
"""length -> number of COCO's 25,014 captions of val2017 that have it: words, punctuation marks, begin and end, cut at
32. A tokenizer splits rare words further, so real batches are a little longer (mean here: 13.3)"""


@dataclass(frozen=True)
class Size:
    """Dimensions of a BLIP-2, all weights random.

    Attributes:
        batch: images per step and rank.
        image_size: pixels per side; patches have 14.
        vit: depth, width, heads and mlp_ratio of the frozen vision encoder.
        qformer: of both stages; stage 2 leaves its text half out.
        llms: configurations of transformers by short name.
    """

    batch: int
    image_size: int
    vit: dict[str, Any]
    qformer: QFormerConfig
    llms: dict[str, dict[str, Any]]

    @property
    def vision_width(self) -> int:
        """Dv."""
        return int(self.vit["width"])


def opt(width: int, layers: int, heads: int, vocabulary: int = 50272, positions: int = 256) -> dict[str, Any]:
    """Configuration of an OPT."""
    return {"model_type": "opt", "vocab_size": vocabulary, "hidden_size": width, "word_embed_proj_dim": width,
            "ffn_dim": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": positions, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}


def t5(width: int, layers: int, heads: int, ffn: int, vocabulary: int = 32128) -> dict[str, Any]:
    """Configuration of a FlanT5."""
    return {"model_type": "t5", "vocab_size": vocabulary, "d_model": width, "d_kv": 64, "d_ff": ffn,
            "num_layers": layers, "num_heads": heads, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
            "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def _qformer(width: int, layers: int, heads: int, queries: int, vision_width: int) -> QFormerConfig:
    return QFormerConfig(hidden_size=width, num_layers=layers, num_heads=heads, intermediate_size=4 * width,
                         num_queries=queries, vision_width=vision_width)


SIZES = {
    "mini": Size(8, 28, {"depth": 2, "width": 32, "heads": 2, "mlp_ratio": 2.0}, _qformer(32, 2, 2, 4, 32),
                 {"opt": opt(32, 2, 2, 1000), "t5": t5(32, 2, 2, 64, 1000)}),
    "medium": Size(16, 112, {"depth": 6, "width": 384, "heads": 6, "mlp_ratio": 4.0}, _qformer(384, 6, 6, 16, 384),
                   {"opt": opt(384, 6, 6), "t5": t5(384, 6, 6, 1024)}),
    "vitg": Size(100, 224, {"depth": 39, "width": 1408, "heads": 16, "mlp_ratio": 4.3637}, QFormerConfig(),
                 {"opt": opt(2560, 32, 32, positions=2048), "t5": t5(2048, 24, 32, 5120)}),
}
"""mini: seconds on a CPU; medium: a laptop; vitg: the paper's ViT-g/14 with BERT-base, OPT-2.7B or FlanT5-XL, for a
GPU"""


def caption_lengths(count: int, generator: torch.Generator, full: bool = False) -> list[int]:
    """Token counts drawn from CAPTION_LENGTHS; if `full`, all have TEXT_WIDTH tokens and a batch has no padding."""
    if full:
        return [TEXT_WIDTH] * count
    weights = torch.tensor(list(CAPTION_LENGTHS.values()), dtype=torch.float64)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return torch.tensor(list(CAPTION_LENGTHS))[drawn].tolist()


def random_rows(lengths: list[int], vocabulary: int, generator: torch.Generator) -> list[list[int]]:
    """Rows of random ids."""
    return [torch.randint(10, vocabulary - 10, (length,), generator=generator).tolist() for length in lengths]


def random_images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """float[B,3,H,W] of normalised noise."""
    return torch.randn(count, 3, size, size, generator=generator)


def padding_share(lengths: list[int]) -> float:
    """Share of padding in a rectangle that is as wide as the longest text."""
    return 1 - sum(lengths) / (len(lengths) * max(lengths))
