"""transformers' configuration of a model of ours, and the section of ours for a configuration of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lavis_lite.checkpoints.formats.hf_fields import (
    completed,
    completed_text,
    mlp_ratio,
    precision_of,
    refuse_uncarried,
)
from lavis_lite.checkpoints.formats.key_maps import to_hf
from lavis_lite.checkpoints.formats.owl import owl_section
from lavis_lite.errors import CheckpointError
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.models.language.contract import language_model_of
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel
    from lavis_lite.models.blip2.llm import Blip2LLM
    from lavis_lite.models.blip2.stage1 import Blip2Qformer
    from lavis_lite.models.vision_language.model import VisionLanguage

RETRIEVAL = "Blip2ForImageTextRetrieval"
GENERATION = "Blip2ForConditionalGeneration"
INSTRUCT = "InstructBlipForConditionalGeneration"
LLAVA = "LlavaForConditionalGeneration"
MODEL_TYPES = {RETRIEVAL: "blip-2", GENERATION: "blip-2", INSTRUCT: "instructblip"}
NO_TEXT_VOCABULARY = 30522
"""what transformers writes where a Q-Former reads no text; nothing has this size then"""
VICUNA_VOCABULARY = range(32001, 32065)
"""LLaMA's 32000 words and few more: the released InstructBLIP's Vicuna, with its padding token"""
QFORMER_TOKENIZER = "qformer_tokenizer"
"""folder of a repository with the tokenizer of the Q-Former's text"""


# ours -> theirs -----------------------------------------------------------------------------------------------------
def hf_class(model: BaseModel) -> str:
    """Name of the class of transformers that computes what this model does.

    Raises:
        CheckpointError: none does.
    """
    if not isinstance(model, Blip2Base):
        return LLAVA
    if language_model_of(model) is None:
        return RETRIEVAL
    return INSTRUCT if model.qformer.cfg.with_text else GENERATION


def hf_config(model: BaseModel, image_token: int | None = None, words: int | None = None) -> dict[str, Any]:
    """Content of config.json, sub-configurations included.

    Args:
        model: on any device.
        image_token: id of `<image>` in the language model's vocabulary; None for retrieval.
        words: rows of the language model's word embeddings as they will be stored.

    Raises:
        CheckpointError: transformers' BLIP-2 cannot be made to compute what this model does.
    """
    ensure_torchvision()
    from transformers import Blip2Config, InstructBlipConfig

    name = hf_class(model)
    if not isinstance(model, Blip2Base):
        from lavis_lite.checkpoints.formats.llava import llava_config

        assert image_token is not None  # it has a language model
        return llava_config(cast("VisionLanguage", model), _text_config(model.language_model, words), image_token)
    parts: dict[str, Any] = {"vision_config": vision_config(model), "qformer_config": _qformer_config(model, name)}
    if name == RETRIEVAL:
        parts["image_text_hidden_size"] = cast("Blip2Qformer", model).vision_proj.out_features
    else:
        parts["text_config"] = _text_config(cast("Blip2LLM", model).language_model, words)
        parts["image_token_index"] = image_token
    kind: Any = InstructBlipConfig if name == INSTRUCT else Blip2Config
    content: dict[str, Any] = kind(num_query_tokens=model.query_tokens.shape[1], **parts).to_dict()
    content["architectures"] = [name]
    if name != RETRIEVAL:
        content["text_config"]["tie_word_embeddings"] = _is_tied(cast("Blip2LLM", model).language_model.model)
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        part.pop("_name_or_path", None)
    return content


def vision_config(model: Blip2Base) -> dict[str, Any]:
    """Of the vision encoder.

    Raises:
        CheckpointError: it is not EVA's ViT (or a plain one): CLIP's and the embedded default have parts that
            transformers' BLIP-2 lacks.
    """
    encoder: Any = model.vision_encoder
    vit = encoder.vit
    names = {f"vision_encoder.vit.{name}": value for name, value in vit.state_dict().items()}
    strange = to_hf(names).unknown
    block = vit.blocks[0]
    plain = isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
    if strange or not plain or tuple(vit.pos_embed.shape[1:2]) != (encoder.num_patches + 1,):
        part = strange[0].removeprefix("vision_encoder.vit.") if strange else "its activation or its position table"
        raise CheckpointError(
            f"vision encoder {encoder.name!r} cannot be written in transformers' format: its BLIP-2 has no place for "
            f"{part}. It has EVA's ViT (eva_clip_g) and plain ViTs only; `--to lavis` and `--to lite` take any.")
    return {"hidden_size": encoder.width, "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": encoder.num_layers, "num_attention_heads": block.attn.num_heads,
            "image_size": encoder.image_size, "patch_size": encoder.patch_size, "hidden_act": "gelu",
            "layer_norm_eps": block.norm1.eps, "qkv_bias": True}


def _qformer_config(model: Blip2Base, name: str) -> dict[str, Any]:
    cfg = model.qformer.cfg
    content = {"vocab_size": cfg.vocab_size if cfg.with_text else NO_TEXT_VOCABULARY, "hidden_size": cfg.hidden_size,
               "num_hidden_layers": cfg.num_layers, "num_attention_heads": cfg.num_heads,
               "intermediate_size": cfg.intermediate_size, "hidden_act": "gelu", "hidden_dropout_prob": cfg.dropout,
               "attention_probs_dropout_prob": cfg.dropout if cfg.attention_dropout is None else cfg.attention_dropout,
               "max_position_embeddings": cfg.max_positions,
               "initializer_range": cfg.initializer_range, "layer_norm_eps": cfg.layer_norm_eps,
               "cross_attention_frequency": cfg.cross_attention_freq, "encoder_hidden_size": cfg.vision_width}
    return content if name == INSTRUCT else {**content, "use_qformer_text_input": name == RETRIEVAL}


def _text_config(language_model: Any, words: int | None) -> dict[str, Any]:
    """Of the language model as it computes here: what starts, ends and fills a text is our tokenizer's."""
    inner, tokenizer = language_model.model, language_model.tokenizer
    content: dict[str, Any] = inner.config.to_dict()
    if content.get("hidden_size", content.get("d_model")) != language_model.hidden_size:
        raise CheckpointError(
            f"this {content['model_type']} cannot be written in transformers' format: its word embeddings are "
            f"{language_model.hidden_size} wide and its layers {content.get('hidden_size')}, and transformers' BLIP-2 "
            "projects to the latter.")
    if words is not None:
        content["vocab_size"] = words
    activations = [module for name, module in inner.named_modules() if name.endswith("DenseReluDense.act")]
    if any(isinstance(module, nn.GELU) for module in activations):
        content["dense_act_fn"] = "gelu"  # see language_model.build.prepare
    start = tokenizer.prompts([""])[0]
    content.update(eos_token_id=tokenizer.end, pad_token_id=language_model.pad, tie_word_embeddings=_is_tied(inner))
    content.update({"bos_token_id": start[0]} if len(start) == 1 else {})  # what an empty prompt is, there too
    return content


def _is_tied(inner: Any) -> bool:
    output = inner.get_output_embeddings()
    return output is None or output.weight is inner.get_input_embeddings().weight


def generation_config(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """Content of generation_config.json."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return {key: text_config[key] for key in keys if text_config.get(key) is not None}


# theirs -> ours -----------------------------------------------------------------------------------------------------
def section_of(config: Mapping[str, Any], folder: Path | str | None = None) -> dict[str, Any]:
    """Keys of a section `model` that builds what a configuration of transformers describes.

    Args:
        config: content of a config.json.
        folder: where it lies, with the tokenizers; None: `tokenizer` and `llm_tokenizer` are left to the caller.

    Raises:
        CheckpointError: it is no BLIP-2, InstructBLIP, LLaVA or mPLUG-Owl, or has fields that no section can follow.
    """
    kind = config.get("model_type")
    if kind == "llava":
        from lavis_lite.checkpoints.formats.llava import llava_section  # most configurations are none

        return llava_section(config, folder)
    if kind == "mplug-owl":
        return owl_section(config, folder)
    if kind not in MODEL_TYPES.values():
        raise CheckpointError(f"config.json is of a {kind!r}, not of a BLIP-2, InstructBLIP or LLaVA model of "
                              "transformers, and not of mPLUG-Owl's first version.")
    config = completed(config)
    refuse_uncarried(config)
    retrieval = RETRIEVAL in (config.get("architectures") or [])
    instruct = kind == MODEL_TYPES[INSTRUCT]
    section = {"pretrained": None, "load_pretrained": False, "vit_weights": "random", "qformer_weights": None,
               "num_query_token": config["num_query_tokens"], **_vision_keys(config), **_qformer_keys(config)}
    if retrieval:
        section.update(arch="blip2", embed_dim=config["image_text_hidden_size"])
    else:
        section.update(_language_keys(config, instruct), qformer_text_input=instruct)
    return {**section, **_tokenizer_keys(config, folder, retrieval, instruct)}


def _vision_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config["vision_config"]
    return {"vit_model": "eva_clip_g", "image_size": vision["image_size"], "vit_precision": precision_of(config),
            "ln_vision_eps": vision["layer_norm_eps"],
            "vit_args": {"depth": vision["num_hidden_layers"], "width": vision["hidden_size"],
                         "heads": vision["num_attention_heads"], "patch_size": vision["patch_size"],
                         "mlp_ratio": mlp_ratio(vision)}}


def _qformer_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    qformer = config["qformer_config"]
    hidden, attention = qformer["hidden_dropout_prob"], qformer["attention_probs_dropout_prob"]
    return {"qformer_hidden_size": qformer["hidden_size"], "qformer_layers": qformer["num_hidden_layers"],
            "qformer_heads": qformer["num_attention_heads"],
            "qformer_intermediate_size": qformer["intermediate_size"],
            "qformer_max_positions": qformer["max_position_embeddings"],
            "qformer_dropout": hidden, "qformer_attention_dropout": None if attention == hidden else attention,
            "qformer_layer_norm_eps": qformer["layer_norm_eps"],
            "cross_attention_freq": qformer["cross_attention_frequency"]}


def _language_keys(config: Mapping[str, Any], instruct: bool) -> dict[str, Any]:
    """arch and the language model's configuration, its vocabulary without a row that the image token alone needed."""
    text = completed_text(config["text_config"])
    if config.get("image_token_index") == text["vocab_size"] - 1:
        text["vocab_size"] -= 1
    kind = text["model_type"]
    if kind == "t5":
        keys = {"arch": "blip2_t5_instruct" if instruct else "blip2_t5"}
        if text.get("dense_act_fn") == "gelu_new":
            keys["llm_family"] = "mt5"  # as T5, but with the activation that it says
        if text.get("scale_decoder_outputs") is False:
            text["tie_word_embeddings"] = False
    elif kind == "opt" or text.get("is_encoder_decoder"):
        keys = {"arch": "blip2_opt" if kind == "opt" else "blip2_t5"}
    else:
        keys = {"arch": "blip2_vicuna_instruct" if instruct else "blip2_vicuna",
                "llm_family": kind if kind == "llama" else "general"}
        if kind == "llama" and (text.get("bos_token_id") == text.get("eos_token_id")
                                or text["vocab_size"] in VICUNA_VOCABULARY):
            keys["llm_family"] = "vicuna"  # whose prompts start with the end token
            text["vocab_size"] -= 1
    return {**keys, "llm_args": text}


def _tokenizer_keys(config: Mapping[str, Any], folder: Path | str | None, retrieval: bool,
                    instruct: bool) -> dict[str, Any]:
    if folder is None:
        return {}
    own = Path(folder) / QFORMER_TOKENIZER
    keys = {} if retrieval else {"llm_tokenizer": str(folder)}
    if not retrieval and not instruct:
        keys["tokenizer"] = "mini"  # this Q-Former reads no text: any does, and this one needs no file
    elif own.is_dir():
        keys["tokenizer"] = str(own)
    elif config["qformer_config"]["vocab_size"] - NO_TEXT_VOCABULARY in (0, 1):
        keys["tokenizer"] = "bert-base-uncased"
    else:
        raise CheckpointError(f"{folder}: the Q-Former reads {config['qformer_config']['vocab_size']} words, and there "
                              f"is no folder {QFORMER_TOKENIZER} with a tokenizer for them.")
    return keys
