"""Hugging Face's names of BLIP-2 and InstructBLIP models <-> ours.

Three classes of transformers share most names: `Blip2ForImageTextRetrieval` (stage 1), `Blip2ForConditionalGeneration`
(stage 2) and `InstructBlipForConditionalGeneration`. The last one has its own place for the Q-Former's embeddings.

Two things are not renames. EVA's qkv projection has one bias of 3 Dv there, whose middle third (the keys') changes no
attention weight and is dropped, exactly. The temperature and the captioning head have no place there: `to_hf` reports
them as unknown, and loading from there leaves them as the model was initialised, unless a side file brings them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_map import KeyMap, Row, Translated, derived, qformer_layer_rows

_BLOCK, _VIT = "vision_model.encoder.layers.{i}.", "vision_encoder.vit.blocks.{i}."
_WORDS, _POSITIONS, _NORM = (f"qformer.embeddings.{name}" for name in (
    "word_embeddings.weight", "position_embeddings.weight", "norm.{p}"))

EMBEDDING_ROWS = {
    False: [Row("embeddings.word_embeddings.weight", _WORDS), Row("embeddings.position_embeddings.weight", _POSITIONS),
            Row("qformer.layernorm.{p}", _NORM)],
    True: [Row("qformer.embeddings.word_embeddings.weight", _WORDS),
           Row("qformer.embeddings.position_embeddings.weight", _POSITIONS),
           Row("qformer.embeddings.layernorm.{p}", _NORM)],
}
"""Whether it is InstructBLIP -> rows of the Q-Former's embeddings."""
ROWS = [
    Row("query_tokens", "query_tokens"),
    Row("vision_projection.{p}", "vision_proj.{p}"),
    Row("text_projection.{p}", "text_proj.{p}"),
    Row("itm_head.{p}", "itm_head.{p}"),
    *qformer_layer_rows("qformer.encoder.layer.{i}.", inner="attention"),
    Row("vision_model.embeddings.class_embedding", "vision_encoder.vit.cls_token"),
    Row("vision_model.embeddings.position_embedding", "vision_encoder.vit.pos_embed"),
    Row("vision_model.embeddings.patch_embedding.{p}", "vision_encoder.vit.patch_embed.proj.{p}"),
    Row("vision_model.post_layernorm.{p}", "ln_vision.{p}"),
    Row(_BLOCK + "self_attn.qkv.{p}", _VIT + "attn.qkv.{p}"),
    Row(_BLOCK + "self_attn.q_bias", _VIT + "attn.q_bias"),  # these two stand for EVA's qkv.bias, see below
    Row(_BLOCK + "self_attn.v_bias", _VIT + "attn.v_bias"),
    Row(_BLOCK + "self_attn.projection.{p}", _VIT + "attn.proj.{p}"),
    Row(_BLOCK + "layer_norm1.{p}", _VIT + "norm1.{p}"),
    Row(_BLOCK + "layer_norm2.{p}", _VIT + "norm2.{p}"),
    Row(_BLOCK + "mlp.fc1.{p}", _VIT + "mlp.fc1.{p}"),
    Row(_BLOCK + "mlp.fc2.{p}", _VIT + "mlp.fc2.{p}"),
    Row("language_projection.{p}", "language_projection.{p}"),
    Row("language_model.{rest}", "language_model.model.{rest}"),
]
BLIP2_MAP, INSTRUCT_MAP = (KeyMap([*EMBEDDING_ROWS[instruct], *ROWS]) for instruct in (False, True))

WITHOUT_PLACE = (r"temp", r"qformer\.lm_head\..+")
"""Our names (regular expressions) that Hugging Face's model does not have."""
_QKV_BIAS = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)qkv\.bias")
_Q_BIAS = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)q_bias")


def from_hf(tensors: Mapping[str, Tensor], fused_bias: bool = False) -> Translated:
    """Hugging Face layout -> ours.

    Args:
        tensors: of any of the three classes.
        fused_bias: the vision encoder has a bias for keys too (a plain ViT of timm), so that theirs stays whole.
    """
    split: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = None if fused_bias else _QKV_BIAS.fullmatch(name)
        if match and tensor.shape[0] % 3 == 0:
            query, _, value = tensor.chunk(3)
            split[match[1] + "q_bias"], split[match[1] + "v_bias"] = query, value
        elif derived(name):
            dropped[name] = derived(name)
        else:
            split[name] = tensor
    instruct = any(name.startswith("qformer.embeddings.") for name in split)
    result = (INSTRUCT_MAP if instruct else BLIP2_MAP).to_ours(split)
    result.dropped = dropped
    return result


def to_hf(tensors: Mapping[str, Tensor], instruct: bool = False) -> Translated:
    """Our layout -> Hugging Face's; `unknown` lists what has no place there (temperature, captioning head).

    Args:
        tensors: of a model.
        instruct: the names of `InstructBlipForConditionalGeneration`.
    """
    result = (INSTRUCT_MAP if instruct else BLIP2_MAP).to_theirs(tensors)
    for name in [name for name in result.tensors if _Q_BIAS.fullmatch(name)]:
        stem = name.removesuffix("q_bias")
        query, value = result.tensors.pop(name), result.tensors.pop(stem + "v_bias")
        result.tensors[stem + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return result
