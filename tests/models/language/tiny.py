"""Tiny random language models of many families, with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lavis_lite.models.language import LanguageModel, Limits, build_language_model

PAD, BOS, EOS = 256, 257, 258
WORDS = 259
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 256}
IDS = {"vocab_size": WORDS, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
SIZES: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 12, "max_position_embeddings": 256, "dropout": 0.1},
    "llama": {"model_type": "llama", **SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "phi": {"model_type": "phi", **SMALL},
    "gemma2": {"model_type": "gemma2", **SMALL, "head_dim": 8, "query_pre_attn_scalar": 8,
               "final_logit_softcapping": 2.0},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
           "decoder_start_token_id": PAD},
    "flan_t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
                "decoder_start_token_id": PAD, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": {"model_type": "bart", "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
             "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
             "max_position_embeddings": 256, "decoder_start_token_id": EOS, "forced_eos_token_id": None},
}
CAUSAL = ["opt", "llama", "gpt2", "qwen2", "phi", "gemma2"]
SEQ2SEQ = ["t5", "flan_t5", "bart"]
USUAL = ("opt", "llama", "gemma2", "t5", "bart")
"""one for learned, rotary and relative positions, windows, and absolute positions of an encoder-decoder"""


def usually(names: Iterable[str]) -> list[Any]:
    """These names for a test's parameters; all but the usual ones run with --long."""
    return [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in names]


def byte_tokenizer(before: bool = True, after: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token; `<s>` before and `</s>` after a text where asked for."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(
        single=" ".join([*(["<s>"] if before else []), "$A", *(["</s>"] if after else [])]),
        special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny(name: str, seed: int = 0, spread: float = 0.6, **options: Any) -> LanguageModel:
    """A frozen random model of a family, with weights large enough that texts matter."""
    torch.manual_seed(seed)
    closed = name in SEQ2SEQ
    options = {"tokenizer": byte_tokenizer(not closed or name == "bart", closed), "limits": Limits(20, 20), **options}
    model = build_language_model("", sizes={**IDS, **SIZES[name]}, **options)
    with torch.no_grad():
        for parameter in (value for value in model.parameters() if value.ndim > 1):
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def soft_prompts(model: LanguageModel, batch: int = 3, queries: int = 4, seed: int = 1) -> Tensor:
    """float[B,Q,D] that gets a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, queries, model.hidden_size, generator=generator)).requires_grad_()
