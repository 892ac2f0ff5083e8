"""Hugging Face's names (`Blip2ForImageTextRetrieval`, the Salesforce/blip2-itm-* repositories) <-> ours.

Two things are not renames. EVA's qkv projection has one bias of 3 Dv there, whose middle third (the keys') changes no
attention weight and is dropped, exactly. The temperature and the captioning head have no place there: `to_hf` reports
them as unknown, and loading from there leaves them as the model was initialised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lavis_lite.models.checkpoints.key_map import KeyMap, Row, Translated

_LAYER, _OURS = "qformer.encoder.layer.{i}.", "qformer.layers.{i}."
_BLOCK, _VIT = "vision_model.encoder.layers.{i}.", "vision_encoder.vit.blocks.{i}."

HF_MAP = KeyMap([
    Row("query_tokens", "query_tokens"),
    Row("vision_projection.{p}", "vision_proj.{p}"),
    Row("text_projection.{p}", "text_proj.{p}"),
    Row("itm_head.{p}", "itm_head.{p}"),
    Row("embeddings.word_embeddings.weight", "qformer.embeddings.word_embeddings.weight"),
    Row("embeddings.position_embeddings.weight", "qformer.embeddings.position_embeddings.weight"),
    Row("qformer.layernorm.{p}", "qformer.embeddings.norm.{p}"),
    Row(_LAYER + "attention.attention.{qkv}.{p}", _OURS + "self_attention.{qkv}.{p}"),
    Row(_LAYER + "attention.output.dense.{p}", _OURS + "self_attention.output.{p}"),
    Row(_LAYER + "attention.output.LayerNorm.{p}", _OURS + "self_attention.norm.{p}"),
    Row(_LAYER + "crossattention.attention.{qkv}.{p}", _OURS + "cross_attention.{qkv}.{p}"),
    Row(_LAYER + "crossattention.output.dense.{p}", _OURS + "cross_attention.output.{p}"),
    Row(_LAYER + "crossattention.output.LayerNorm.{p}", _OURS + "cross_attention.norm.{p}"),
    Row(_LAYER + "intermediate.dense.{p}", _OURS + "text_ffn.up.{p}"),
    Row(_LAYER + "output.dense.{p}", _OURS + "text_ffn.down.{p}"),
    Row(_LAYER + "output.LayerNorm.{p}", _OURS + "text_ffn.norm.{p}"),
    Row(_LAYER + "intermediate_query.dense.{p}", _OURS + "query_ffn.up.{p}"),
    Row(_LAYER + "output_query.dense.{p}", _OURS + "query_ffn.down.{p}"),
    Row(_LAYER + "output_query.LayerNorm.{p}", _OURS + "query_ffn.norm.{p}"),
    Row("vision_model.embeddings.class_embedding", "vision_encoder.vit.cls_token"),
    Row("vision_model.embeddings.position_embedding", "vision_encoder.vit.pos_embed"),
    Row("vision_model.embeddings.patch_embedding.{p}", "vision_encoder.vit.patch_embed.proj.{p}"),
    Row("vision_model.post_layernorm.{p}", "ln_vision.{p}"),
    Row(_BLOCK + "self_attn.qkv.weight", _VIT + "attn.qkv.weight"),
    Row(_BLOCK + "self_attn.q_bias", _VIT + "attn.q_bias"),  # these two stand for qkv.bias, see below
    Row(_BLOCK + "self_attn.v_bias", _VIT + "attn.v_bias"),
    Row(_BLOCK + "self_attn.projection.{p}", _VIT + "attn.proj.{p}"),
    Row(_BLOCK + "layer_norm1.{p}", _VIT + "norm1.{p}"),
    Row(_BLOCK + "layer_norm2.{p}", _VIT + "norm2.{p}"),
    Row(_BLOCK + "mlp.fc1.{p}", _VIT + "mlp.fc1.{p}"),
    Row(_BLOCK + "mlp.fc2.{p}", _VIT + "mlp.fc2.{p}"),
])
WITHOUT_PLACE = (r"temp", r"qformer\.lm_head\..+")
"""Our names (regular expressions) that Hugging Face's model does not have."""
_QKV_BIAS = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)qkv\.bias")
_Q_BIAS = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)q_bias")


def from_hf(tensors: Mapping[str, Tensor]) -> Translated:
    """Hugging Face layout -> ours."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _QKV_BIAS.fullmatch(name)
        if match and tensor.shape[0] % 3 == 0:
            query, _, value = tensor.chunk(3)
            split[match[1] + "q_bias"], split[match[1] + "v_bias"] = query, value
        elif not name.endswith("position_ids"):
            split[name] = tensor
    result = HF_MAP.to_ours(split)
    result.dropped = {name: "0, 1, 2, ..." for name in tensors if name.endswith("position_ids")}
    return result


def to_hf(tensors: Mapping[str, Tensor]) -> Translated:
    """Our layout -> Hugging Face's; `unknown` lists what has no place there (temperature, captioning head)."""
    result = HF_MAP.to_theirs(tensors)
    for name in [name for name in result.tensors if _Q_BIAS.fullmatch(name)]:
        stem = name.removesuffix("q_bias")
        query, value = result.tensors.pop(name), result.tensors.pop(stem + "v_bias")
        result.tensors[stem + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return result
