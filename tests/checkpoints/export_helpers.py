"""Tiny models of every arch that can be exported, with weights that are all different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_lite.registry import registry
from tests.models.language.tiny import IDS, PAD, SIZES, byte_tokenizer

TINY: dict[str, Any] = {
    "vit_model": "eva_clip_g", "image_size": 28, "vit_precision": "fp32", "vit_weights": "random",
    "vit_args": {"depth": 2, "width": 16, "heads": 2, "mlp_ratio": 1.7}, "tokenizer": "mini", "qformer_weights": None,
    "num_query_token": 3, "qformer_hidden_size": 12, "qformer_layers": 2, "qformer_heads": 2,
    "qformer_intermediate_size": 16, "qformer_max_positions": 32, "qformer_dropout": 0.0, "load_pretrained": False}
LLM = {"blip2_opt": "opt", "blip2_t5": "t5", "blip2_t5_instruct": "flan_t5", "blip2_vicuna": "llama",
       "blip2_vicuna_instruct": "llama"}
ARCHS = ["blip2", "blip2_opt", "blip2_t5_instruct", "blip2_vicuna_instruct"]


def section_of_arch(arch: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A section `model`, plain containers; the language model's tokenizer is written into `folder`."""
    section = {**TINY, "max_txt_len": 24, "arch": arch, **changes}
    if arch not in LLM:
        return {**section, "embed_dim": 8}
    kind = LLM[arch]
    encoder = kind.endswith("t5")
    byte_tokenizer(before=not encoder, after=encoder).save_pretrained(folder / "tokenizer")
    sizes = {**IDS, **SIZES[kind], **({"word_embed_proj_dim": 16} if kind == "opt" else {})}
    sizes |= {"decoder_start_token_id": PAD} if encoder else {}
    return {"llm_args": sizes, "llm_tokenizer": str(folder / "tokenizer"), "llm_precision": "fp32", **section}


def build(section: dict[str, Any], seed: int = 0) -> Any:
    """The model of a section, every tensor random."""
    torch.manual_seed(seed)
    cls = registry.get_model_class(section["arch"])
    model: Any = cls.from_config(cls.config_class(**section))  # type: ignore[attr-defined]
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.4 * torch.randn_like(value))
    return model.eval()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
