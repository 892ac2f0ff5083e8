"""Names of a BLIP-2 model's tensors here, in LAVIS and in transformers: tables of rows that read in both directions.

A row has two templates, names with placeholders. `{i}` stands for a layer number, `{p}` for weight or bias, `{qkv}` for
query, key or value, `{rest}` for anything; both templates of a row have the same ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lavis_lite.errors import CheckpointError

PLACEHOLDERS = {"i": r"\d+", "p": "weight|bias", "qkv": "query|key|value", "rest": ".+"}
DERIVED = {
    r"(.+\.)?position_ids": "0, 1, 2, ...",
    r"(opt_model|t5_model|llm_model|language_model)\..+\.rotary_emb\.inv_freq":
        "a constant that follows from the head's width",
}
"""Names (regular expressions) of buffers that some versions store although they hold nothing learned -> why."""


@dataclass(frozen=True)
class Row:
    """One rename.

    Attributes:
        theirs: template in the foreign layout.
        ours: template in this project's layout.
        leading: axes of size 1 that our tensor has in front and theirs lacks.
    """

    theirs: str
    ours: str
    leading: int = 0


def qformer_layer_rows(layer: str, inner: str) -> list[Row]:
    """A Q-Former layer under BERT's names, which LAVIS and transformers both keep.

    Args:
        layer: their template in front of a layer's names, with `{i}`.
        inner: how they call what is within an attention: self (LAVIS) or attention.
    """
    ours, rows = "qformer.layers.{i}.", []
    for theirs, name in (("attention", "self_attention"), ("crossattention", "cross_attention")):
        rows += [Row(f"{layer}{theirs}.{inner}.{{qkv}}.{{p}}", f"{ours}{name}.{{qkv}}.{{p}}"),
                 Row(f"{layer}{theirs}.output.dense.{{p}}", f"{ours}{name}.output.{{p}}"),
                 Row(f"{layer}{theirs}.output.LayerNorm.{{p}}", f"{ours}{name}.norm.{{p}}")]
    for theirs, name in (("", "text_ffn"), ("_query", "query_ffn")):
        rows += [Row(f"{layer}intermediate{theirs}.dense.{{p}}", f"{ours}{name}.up.{{p}}"),
                 Row(f"{layer}output{theirs}.dense.{{p}}", f"{ours}{name}.down.{{p}}"),
                 Row(f"{layer}output{theirs}.LayerNorm.{{p}}", f"{ours}{name}.norm.{{p}}")]
    return rows


@dataclass
class Translated:
    """A state dict in the other layout.

    Attributes:
        tensors: by their new names.
        unknown: names (in the old layout) that no row explains.
        dropped: old name -> why it has no counterpart (derived tensors, copies of tied ones).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


class KeyMap:
    """Rows, tried in order; the first that matches a whole name decides."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    @functools.cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str, int]]:  # once they are needed: it takes a while
        return [(_pattern(row.theirs), row.ours, row.leading) for row in self.rows]

    @functools.cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str, int]]:
        return [(_pattern(row.ours), row.theirs, -row.leading) for row in self.rows]

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Translated:
        """Foreign layout -> this project's."""
        return _translate(tensors, self._to_ours)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> Translated:
        """This project's layout -> the foreign one."""
        return _translate(tensors, self._to_theirs)


def derived(name: str) -> str:
    """Why a foreign tensor needs no place here; "" for all others."""
    return next((why for pattern, why in DERIVED.items() if re.fullmatch(pattern, name)), "")


def _pattern(template: str) -> re.Pattern[str]:
    def placeholder(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{PLACEHOLDERS[match[1]]})"

    return re.compile(re.sub(r"\\{(\w+)\\}", placeholder, re.escape(template)))


def _translate(tensors: Mapping[str, Tensor], rows: list[tuple[re.Pattern[str], str, int]]) -> Translated:
    result = Translated()
    for name, tensor in tensors.items():
        for pattern, template, leading in rows:
            match = pattern.fullmatch(name)
            if match:
                shape = (1,) * leading + tuple(tensor.shape)[max(-leading, 0):]  # leading < 0: axes to take away
                result.tensors[template.format(**match.groupdict())] = tensor.reshape(shape)
                break
        else:
            result.unknown.append(name)
    return result



# LAVIS --------------------------------------------------------------------------------------------------------------
# Every row is a plain rename. LAVIS also stores what can be derived: `position_ids`, and the language-model head's
# output layer, which is tied to the word embeddings and to the head's bias. Reading checks that such copies are copies;
# writing adds them again.
_HEAD = "Qformer.cls.predictions."
VIT = "vision_encoder.vit."
"""the beginning of a ViT's names in a whole model"""
_CLIP, _VIT = "visual_encoder.transformer.resblocks.{i}.", VIT + "blocks.{i}."

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


def lavis_map(clip: bool, language_model: str) -> KeyMap:
    """The map of a model with that vision encoder and that kind of language model (no matter where it has none)."""
    return KeyMap([*TOP_ROWS, *QFORMER_ROWS, *(CLIP_ROWS if clip else EVA_ROWS), *language_rows(language_model)])

QFORMER_MAP = KeyMap(QFORMER_ROWS)
EVA_MAP, CLIP_MAP = lavis_map(False, "opt"), lavis_map(True, "opt")

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
        if copy in rest and original in rest and same_values(rest[copy], rest[original]):
            del rest[copy]
            dropped[copy] = f"the same tensor as {original}"
    clip = any(name.startswith("visual_encoder.conv1.") for name in rest)
    result = lavis_map(clip, language_prefix(rest) or LANGUAGE_MODELS[0]).to_ours(rest)
    result.dropped = dropped
    return result


def language_prefix(names: Iterable[str]) -> str | None:
    """opt | t5 | llm, what LAVIS calls the language model in a checkpoint with these names; None: it has none."""
    starts = {name.partition(".")[0] for name in names}
    return next((kind for kind in LANGUAGE_MODELS if {f"{kind}_proj", f"{kind}_model"} & starts), None)


def language_kind(model: object) -> str | None:
    """opt | t5 | llm: what LAVIS calls the model's language model; None: it has none."""
    from lavis_lite.models.language.contract import language_model_of  # most maps are of names alone

    language_model = language_model_of(model)
    config = None if language_model is None else getattr(language_model.model, "config", None)
    if config is None:
        return None
    if config.is_encoder_decoder:
        return "t5"
    return "opt" if config.model_type == "opt" else "llm"


def refuse_other_kind(model: object, config: type, source: str | Path) -> None:
    """Refuse a checkpoint of this project over another kind of language model: equal widths hide it.

    Args:
        model: that it would be loaded into.
        config: class of the section of the arch that the checkpoint records.
        source: the checkpoint.

    Raises:
        CheckpointError: that arch has language models of another kind.
    """
    from lavis_lite.models.blip2.config import Blip2OPTConfig, Blip2T5Config, Blip2VicunaConfig

    own, kinds = language_kind(model), ((Blip2OPTConfig, "opt"), (Blip2T5Config, "t5"), (Blip2VicunaConfig, "llm"))
    found = next((kind for known, kind in kinds if issubclass(config, known)), own)
    if found != own:
        raise CheckpointError(f"{source} does not fit the model, nothing was loaded. It was trained over a language "
                              f"model of another kind than that of {type(model).__name__}, where its projection would "
                              "mean nothing. Begin with stage 1 and train stage 2 over the new one.")


def to_lavis(tensors: Mapping[str, Tensor], language_model: str = "opt", max_positions: int = 0) -> Translated:
    """Our layout -> LAVIS', with the derived tensors that LAVIS' checkpoints have.

    Args:
        tensors: of a model.
        language_model: opt | t5 | llm, what LAVIS calls the model's language model.
        max_positions: of the Q-Former's text; needed where the model has no text half, LAVIS counts them even so.
    """
    clip = "vision_encoder.vit.norm_pre.weight" in tensors
    result = lavis_map(clip, language_model).to_theirs(tensors)
    for copy, original in COPIES.items():
        if original in result.tensors and _HEAD + "bias" in result.tensors:
            result.tensors[copy] = result.tensors[original]
    positions = tensors.get("qformer.embeddings.position_embeddings.weight")
    if positions is not None:
        max_positions = len(positions)
    if max_positions:
        result.tensors[POSITION_IDS] = torch.arange(max_positions)[None]
    return result


def same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal; on the meta device, whether their shapes are."""
    return first.shape == second.shape and (first.is_meta or second.is_meta or torch.equal(first, second))

# transformers -------------------------------------------------------------------------------------------------------
# Three classes share most names: `Blip2ForImageTextRetrieval` (stage 1), `Blip2ForConditionalGeneration` (stage 2) and
# `InstructBlipForConditionalGeneration`, which has other names for the Q-Former's embeddings. Two things are not
# renames. EVA's qkv projection has one bias of 3 Dv there, whose middle third (the keys') changes no attention weight
# and is dropped, exactly. The temperature and the captioning head have no name there: `to_hf` reports them as unknown,
# and a model that is loaded from there keeps their initial values, unless a side file has them.
_HF_BLOCK = "vision_model.encoder.layers.{i}."
_WORDS, _POSITIONS, _NORM = (f"qformer.embeddings.{name}" for name in (
    "word_embeddings.weight", "position_embeddings.weight", "norm.{p}"))

HF_EMBEDDING_ROWS = {
    False: [Row("embeddings.word_embeddings.weight", _WORDS), Row("embeddings.position_embeddings.weight", _POSITIONS),
            Row("qformer.layernorm.{p}", _NORM)],
    True: [Row("qformer.embeddings.word_embeddings.weight", _WORDS),
           Row("qformer.embeddings.position_embeddings.weight", _POSITIONS),
           Row("qformer.embeddings.layernorm.{p}", _NORM)],
}
"""Whether it is InstructBLIP -> rows of the Q-Former's embeddings."""
HF_BLOCK_ROWS = [
    Row(_HF_BLOCK + "self_attn.qkv.{p}", _VIT + "attn.qkv.{p}"),  # CLIP's is joined from three, see `join_qkv`
    *(Row(f"{_HF_BLOCK}{theirs}.{{p}}", f"{_VIT}{ours}.{{p}}") for theirs, ours in (
        ("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")))]
"""a ViT's block as BLIP-2 and CLIP have it"""
HF_ROWS = [
    Row("query_tokens", "query_tokens"),
    Row("vision_projection.{p}", "vision_proj.{p}"),
    Row("text_projection.{p}", "text_proj.{p}"),
    Row("itm_head.{p}", "itm_head.{p}"),
    *qformer_layer_rows("qformer.encoder.layer.{i}.", inner="attention"),
    Row("vision_model.embeddings.class_embedding", "vision_encoder.vit.cls_token"),
    Row("vision_model.embeddings.position_embedding", "vision_encoder.vit.pos_embed"),
    Row("vision_model.embeddings.patch_embedding.{p}", "vision_encoder.vit.patch_embed.proj.{p}"),
    Row("vision_model.post_layernorm.{p}", "ln_vision.{p}"),
    *HF_BLOCK_ROWS,
    Row(_HF_BLOCK + "self_attn.q_bias", _VIT + "attn.q_bias"),  # these two stand for EVA's qkv.bias, see below
    Row(_HF_BLOCK + "self_attn.v_bias", _VIT + "attn.v_bias"),
    Row(_HF_BLOCK + "self_attn.projection.{p}", _VIT + "attn.proj.{p}"),
    Row("language_projection.{p}", "language_projection.{p}"),
    Row("language_model.{rest}", "language_model.model.{rest}"),
]
BLIP2_MAP, INSTRUCT_MAP = (KeyMap([*HF_EMBEDDING_ROWS[instruct], *HF_ROWS]) for instruct in (False, True))

LANGUAGE_MODEL = "language_model.model."
"""what names of transformers' language model begin with in ours"""
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


# CLIP's vision model in transformers --------------------------------------------------------------------------------
HF_CLIP_MAP = KeyMap([
    Row("vision_model.embeddings.class_embedding", VIT + "cls_token", leading=2),
    Row("vision_model.embeddings.position_embedding.weight", VIT + "pos_embed", leading=1),
    Row("vision_model.embeddings.patch_embedding.weight", VIT + "patch_embed.proj.weight"),
    Row("vision_model.pre_layrnorm.{p}", VIT + "norm_pre.{p}"),  # spelt so in that layout
    *HF_BLOCK_ROWS,
    Row(_HF_BLOCK + "self_attn.out_proj.{p}", _VIT + "attn.proj.{p}"),
    Row("vision_model.post_layernorm.{p}", VIT + "norm.{p}"),
    Row("vision_model.{rest}", VIT + "{rest}"),
])


def join_qkv(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with the projections of queries, keys and values as one."""
    joined = {name: value for name, value in part.items() if not re.search(r"self_attn\.[qkv]_proj\.", name)}
    for name in part:
        if ".q_proj." in name:
            three = [part[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            joined[name.replace(".q_proj.", ".qkv.")] = torch.cat(three)
    return joined


# LLaVA: see `lavis_lite.checkpoints.formats.llava` -------------------------------------------------------------------
PROJECTORS = ("multi_modal_projector.", "model.multi_modal_projector.", "mm_projector.", "model.mm_projector.")


def is_llava(names: Iterable[str]) -> bool:
    """Whether names are those of a LLaVA, or of its projector alone."""
    return any(name.startswith(PROJECTORS) for name in names)
