"""mPLUG-Owl: names of its release, its config.json, and the section of ours for it.

The release has `vision_model.*` (CLIP's ViT and its last norm), `query_tokens`, `abstractor.*` and `language_model.*`.
Its encoder keeps the projections of a head together, query, key and value; ours keeps those of all heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_lite.checkpoints.formats.hf_fields import mlp_ratio, part_of, precision_of
from lavis_lite.checkpoints.formats.key_maps import VIT, KeyMap, Row, Translated, derived
from lavis_lite.errors import CheckpointError

BLOCK, CROSS = "vision_model.encoder.layers.{i}.", "abstractor.encoder.layers.{i}.crossattention."
OWN_BLOCK, OWN_CROSS = VIT + "blocks.{i}.", "connector.layers.{i}."
OWL_MAP = KeyMap([
    Row("vision_model.embeddings.cls_token", VIT + "cls_token"),
    Row("vision_model.embeddings.position_embedding", VIT + "pos_embed"),
    Row("vision_model.embeddings.patch_embed.weight", VIT + "patch_embed.proj.weight"),
    Row("vision_model.embeddings.pre_layernorm.{p}", VIT + "norm_pre.{p}"),
    Row("vision_model.post_layernorm.{p}", VIT + "norm.{p}"),
    *(Row(f"{BLOCK}{theirs}.{{p}}", f"{OWN_BLOCK}{ours}.{{p}}") for theirs, ours in (
        ("self_attn.query_key_value", "attn.qkv"), ("self_attn.dense", "attn.proj"), ("input_layernorm", "norm1"),
        ("post_attention_layernorm", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"))),
    Row("query_tokens", "connector.queries"),
    Row(f"{CROSS}attention.{{qkv}}.{{p}}", f"{OWN_CROSS}attention.{{qkv}}.{{p}}"),
    *(Row(f"{CROSS}{theirs}.{{p}}", f"{OWN_CROSS}{ours}.{{p}}") for theirs, ours in (
        ("norm1", "norm_queries"), ("normk", "norm_features"), ("output.out_proj", "attention.output"),
        ("output.norm2", "norm_attended"), ("output.mlp.w1", "gate"), ("output.mlp.w3", "up"),
        ("output.mlp.w2", "down"), ("output.mlp.ffn_ln", "norm_inner"))),
    Row("abstractor.visual_fc.{p}", "connector.projection.{p}"),
    Row("abstractor.vit_eos", "connector.end"),
    Row("language_model.{rest}", "language_model.model.{rest}"),
])
SIZES: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "layer_norm_eps": 1e-6},
    "visual_abstractor_config": {"num_hidden_layers": 6, "num_attention_heads": 16, "intermediate_size": 4096,
                                 "attention_probs_dropout_prob": 0.1},
}
"""fields of the parts that a section has keys for -> what the release's classes fill in"""


def from_owl(tensors: Mapping[str, Tensor], heads: int) -> Translated:
    """The release's layout -> ours.

    Args:
        tensors: of the release.
        heads: of the vision encoder.

    Raises:
        CheckpointError: its language model is BLOOM, in front of which it places pictures after a norm of the words.
    """
    if any(name.endswith("word_embeddings_layernorm.weight") for name in tensors):
        raise CheckpointError("this mPLUG-Owl is built on BLOOM, and puts its pictures after the norm of BLOOM's "
                              "words. Here they would pass that norm, and the outputs would differ. Nothing was "
                              "loaded; the releases over LLaMA can be loaded.")
    dropped = {name: derived(name) for name in tensors if derived(name)}
    found = OWL_MAP.to_ours(_regrouped(tensors, heads, dropped))
    found.dropped = dropped
    return found


def _regrouped(tensors: Mapping[str, Tensor], heads: int, without: Iterable[str]) -> dict[str, Tensor]:
    """The tensors; in joined projections, heads of three kinds each become kinds of so many heads.

    One that has no such parts fits no model with these heads; it stays, and the check of shapes names it.
    """
    joined = re.compile(r".*\.(self_attn\.query_key_value|attn\.qkv)\.(weight|bias)")
    return {name: tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            if joined.fullmatch(name) and len(tensor) % (3 * heads) == 0 else tensor
            for name, tensor in tensors.items() if name not in without}


def owl_section(config: Mapping[str, Any], folder: Path | str | None = None) -> dict[str, Any]:
    """Keys of a section `model` that builds what an mPLUG-Owl's config.json describes.

    Args:
        config: its content.
        folder: where it lies, with the tokenizer; None: `llm_tokenizer` is left to the caller.

    Raises:
        CheckpointError: a part that `vision_language` does not have, or that is not an object.
    """
    vision, abstractor = ({**sizes, **part_of(config, part)} for part, sizes in SIZES.items())
    text = {"model_type": "llama", **part_of(config, "text_config")}
    width = vision["hidden_size"]
    wanted = (("vision_config.hidden_act", vision.get("hidden_act", "quick_gelu"), "quick_gelu"),
              *((f"visual_abstractor_config.{key}", abstractor.get(key, width), width)
                for key in ("hidden_size", "encoder_hidden_size")),
              ("visual_abstractor_config.layer_norm_eps", abstractor.get("layer_norm_eps", 1e-6), 1e-6),
              ("text_config.model_type", text["model_type"], "llama"))
    errors = [f"{key} is {value!r} (here {own!r})" for key, value, own in wanted if value != own]
    if errors:
        raise CheckpointError(f"config.json: {'; '.join(errors)}. This package's mPLUG-Owl has the values in brackets, "
                              "and its outputs would differ. Nothing was loaded.")
    section = {
        "arch": "vision_language", "pretrained": None, "load_pretrained": False, "vit_weights": "random",
        "vit_model": "clip_L", "image_size": vision["image_size"], "vit_layer": -1, "vit_cls": "keep",
        "vit_precision": precision_of(config),
        "vit_args": {"depth": vision["num_hidden_layers"] - 1, "width": width,
                     "heads": vision["num_attention_heads"], "patch_size": vision["patch_size"],
                     "mlp_ratio": mlp_ratio(vision), "norm_eps": vision["layer_norm_eps"]},
        "connector": {"type": "abstractor", "queries": config.get("num_query_tokens", 64),
                      "depth": abstractor["num_hidden_layers"], "heads": abstractor["num_attention_heads"],
                      "inner": abstractor["intermediate_size"], "dropout": abstractor["attention_probs_dropout_prob"]},
        "llm_args": {"vocab_size": 32000, **text}, "llm_family": "llama", "template": "mplug_owl"}
    return section if folder is None else {**section, "llm_tokenizer": str(folder)}
