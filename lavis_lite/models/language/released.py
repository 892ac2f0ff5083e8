"""Sizes of released language models, so that shapes can be built, counted and checked where no file of theirs is.

Facts of their published configurations, in transformers' names.
"""

from __future__ import annotations

from typing import Any


def _opt(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "opt", "vocab_size": 50272, "hidden_size": width, "word_embed_proj_dim": width,
            "ffn_dim": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": 2048}


def _flan_t5(width: int, inner: int, heads: int, layers: int = 24) -> dict[str, Any]:
    return {"model_type": "t5", "vocab_size": 32128, "d_model": width, "d_kv": 64, "d_ff": inner, "num_layers": layers,
            "num_heads": heads, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
            "decoder_start_token_id": 0}


def _vicuna(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "llama", "vocab_size": 32000, "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "rms_norm_eps": 1e-6}


def _mpt(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "mpt", "vocab_size": 50432, "d_model": width, "n_layers": layers, "n_heads": heads,
            "expansion_ratio": 4, "max_seq_len": 2048, "no_bias": True}


_SMOLLM2 = _vicuna(576, 1536, 30, 9) | {
    "vocab_size": 49152, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True}

RELEASED: dict[str, dict[str, Any]] = {
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-2.7b": _opt(2560, 32, 32),
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    "google/flan-t5-small": _flan_t5(512, 1024, 6, 8),
    "google/flan-t5-xl": _flan_t5(2048, 5120, 32),
    "google/flan-t5-xxl": _flan_t5(4096, 10240, 64),
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2,
    "huggyllama/llama-7b": _vicuna(4096, 11008, 32, 32),
    "lmsys/vicuna-7b-v1.1": _vicuna(4096, 11008, 32, 32),
    "lmsys/vicuna-13b-v1.1": _vicuna(5120, 13824, 40, 40),
    "lmsys/vicuna-7b-v1.5": _vicuna(4096, 11008, 32, 32) | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "mosaicml/mpt-7b": _mpt(4096, 32, 32),
}
"""hub name -> `model.llm_args` of a model of its shape"""
