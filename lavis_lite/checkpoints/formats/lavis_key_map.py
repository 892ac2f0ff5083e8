"""LAVIS' names of a BLIP-2 model with a Q-Former <-> ours. Every row is a plain rename.

LAVIS also stores what can be derived: `position_ids`, and the language-model head's output layer, which is tied to the
word embeddings and to the head's bias. Reading checks that such copies are copies; writing adds them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.key_map import KeyMap, Row, Translated, derived, qformer_layer_rows

_HEAD = "Qformer.cls.predictions."
_CLIP, _VIT = "visual_encoder.transformer.resblocks.{i}.", "vision_encoder.vit.blocks.{i}."

QFORMER_ROWS = [
    Row("Qformer.bert.embeddings.word_embeddings.weight", "qformer.embeddings.word_embeddings.weight"),
    Row("Qformer.bert.embeddings.position_embeddings.weight", "qformer.embeddings.position_embeddings.weight"),
    Row("Qformer.bert.embeddings.LayerNorm.{p}", "qformer.embeddings.norm.{p}"),
    *qformer_layer_rows("Qformer.bert.encoder.layer.{i}.", inner="self"),
    Row(_HEAD + "transform.dense.{p}", "qformer.lm_head.transform.{p}"),
    Row(_HEAD + "transform.LayerNorm.{p}", "qformer.lm_head.norm.{p}"),
    Row(_HEAD + "bias", "qformer.lm_head.bias"),
]
TOP_ROWS = [Row(name, name) for name in ("query_tokens", "temp", "ln_vision.{p}", "vision_proj.{p}", "text_proj.{p}",
                                         "itm_head.{p}")]
CLIP_ROWS = [
    Row("visual_encoder.class_embedding", "vision_encoder.vit.cls_token", leading=2),
    Row("visual_encoder.positional_embedding", "vision_encoder.vit.pos_embed", leading=1),
    Row("visual_encoder.conv1.weight", "vision_encoder.vit.patch_embed.proj.weight"),
    Row("visual_encoder.ln_pre.{p}", "vision_encoder.vit.norm_pre.{p}"),
    Row(_CLIP + "attn.in_proj_weight", _VIT + "attn.qkv.weight"),
    Row(_CLIP + "attn.in_proj_bias", _VIT + "attn.qkv.bias"),
    Row(_CLIP + "attn.out_proj.{p}", _VIT + "attn.proj.{p}"),
    Row(_CLIP + "ln_1.{p}", _VIT + "norm1.{p}"),
    Row(_CLIP + "ln_2.{p}", _VIT + "norm2.{p}"),
    Row(_CLIP + "mlp.c_fc.{p}", _VIT + "mlp.fc1.{p}"),
    Row(_CLIP + "mlp.c_proj.{p}", _VIT + "mlp.fc2.{p}"),
]
EVA_ROWS = [Row("visual_encoder.{rest}", "vision_encoder.vit.{rest}")]
"""timm's EVA has LAVIS' names."""

LANGUAGE_MODELS = ("opt", "t5", "llm")
"""LAVIS' prefixes of the language model and of the projection to it, by arch"""


def language_rows(prefix: str) -> list[Row]:
    """Rows of the language model and its projection; transformers' names inside are the same on both sides."""
    return [Row(f"{prefix}_proj.{{p}}", "language_projection.{p}"),
            Row(f"{prefix}_model.{{rest}}", "language_model.model.{rest}")]


def key_map(clip: bool, language_model: str) -> KeyMap:
    """The map of a model with that vision encoder and that kind of language model (no matter where it has none)."""
    return KeyMap([*TOP_ROWS, *QFORMER_ROWS, *(CLIP_ROWS if clip else EVA_ROWS), *language_rows(language_model)])

EVA_MAP, CLIP_MAP = key_map(False, "opt"), key_map(True, "opt")

POSITION_IDS = "Qformer.bert.embeddings.position_ids"
COPIES = {
    _HEAD + "decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    _HEAD + "decoder.bias": _HEAD + "bias",
}
"""A tied tensor's second name -> its first."""


def from_lavis(tensors: Mapping[str, Tensor]) -> Translated:
    """LAVIS layout -> ours. A copy that differs from its original stays unknown, since we would lose it."""
    dropped = {name: derived(name) for name in tensors if derived(name)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    for copy, original in COPIES.items():
        if copy in rest and original in rest and _equal(rest[copy], rest[original]):
            del rest[copy]
            dropped[copy] = f"the same tensor as {original}"
    clip = any(name.startswith("visual_encoder.conv1.") for name in rest)
    result = key_map(clip, language_prefix(rest) or LANGUAGE_MODELS[0]).to_ours(rest)
    result.dropped = dropped
    return result


def language_prefix(names: Iterable[str]) -> str | None:
    """opt | t5 | llm, what LAVIS calls the language model in a checkpoint with these names; None: it has none."""
    starts = {name.partition(".")[0] for name in names}
    return next((kind for kind in LANGUAGE_MODELS if {f"{kind}_proj", f"{kind}_model"} & starts), None)


def to_lavis(tensors: Mapping[str, Tensor], language_model: str = "opt", max_positions: int = 0) -> Translated:
    """Our layout -> LAVIS', with the derived tensors that LAVIS' checkpoints have.

    Args:
        tensors: of a model.
        language_model: opt | t5 | llm, what LAVIS calls the model's language model.
        max_positions: of the Q-Former's text; needed where the model has no text half, LAVIS counts them even so.
    """
    clip = "vision_encoder.vit.norm_pre.weight" in tensors
    result = key_map(clip, language_model).to_theirs(tensors)
    for copy, original in COPIES.items():
        if original in result.tensors and _HEAD + "bias" in result.tensors:
            result.tensors[copy] = result.tensors[original]
    positions = tensors.get("qformer.embeddings.position_embeddings.weight")
    if positions is not None:
        max_positions = len(positions)
    if max_positions:
        result.tensors[POSITION_IDS] = torch.arange(max_positions)[None]
    return result


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.is_meta or second.is_meta:
        return first.shape == second.shape
    return torch.equal(first, second)
