"""Every field of a transformers configuration: carried into a section `model`, without effect, or refused by name.

A field that is in none of these tables must have the default of transformers' class. So a field that a later version of
transformers adds is refused as soon as a checkpoint uses it, and not dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints.manifest import json_object
from lavis_lite.errors import CheckpointError
from lavis_lite.models.blip2.base import Blip2Base
from lavis_lite.torchvision_shim import ensure_torchvision

MODEL_TYPES = ("blip-2", "instructblip")
PARTS = ("vision_config", "qformer_config", "text_config")
CARRIED: dict[str, frozenset[str]] = {
    "": frozenset({"num_query_tokens", "image_text_hidden_size", "image_token_index", *PARTS}),
    "vision_config": frozenset({"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                "image_size", "patch_size"}),
    "qformer_config": frozenset({"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                 "intermediate_size", "max_position_embeddings", "hidden_dropout_prob",
                                 "layer_norm_eps", "cross_attention_frequency", "attention_probs_dropout_prob",
                                 "encoder_hidden_size", "use_qformer_text_input"}),
}
"""fields that a section has a key for, or that follow from another field or from the class of the model; text_config is
carried whole, as `llm_args`"""
EVA_EPS = 1e-6
FIXED: dict[str, dict[str, Any]] = {
    "": {},
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": EVA_EPS, "qkv_bias": True, "num_channels": 3},
    "qformer_config": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
}
"""fields that have one value in this package's models"""
_AT_THE_START = {"initializer_range", "initializer_factor"}
"""what new weights are drawn from; a checkpoint has all of its own"""
_UNUSED = {"dropout", "projection_dim", "use_decoder_only_language_model", "is_encoder_decoder", "classifier_dropout",
           "torch_dtype", "use_bfloat16", "torchscript", "pruned_heads", "tf_legacy_loss", "tie_encoder_decoder",
           "cross_attention_hidden_size", "is_decoder", "add_cross_attention", "tie_word_embeddings", "prefix",
           "tokenizer_class", "task_specific_params", "finetuning_task", "sep_token_id", "use_cache",
           "attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash"}
"""of older versions, or of other kinds of models: transformers' BLIP-2 computes nothing from them"""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with the fields that it leaves out, as transformers' classes fill them in.

    Raises:
        CheckpointError: a part is not an object.
    """
    classes = _classes(str(config.get("model_type")))
    full = {**_defaults(classes[""]), **config}
    full["text_config"] = part_of(full, "text_config")
    for part in PARTS[:2]:
        full[part] = {**_defaults(classes[part]), **part_of(config, part)}
    return full


def part_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A sub-configuration of a config.json; an absent one is empty.

    Raises:
        CheckpointError: it is not an object.
    """
    given = config.get(part) or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config.json: {part} must be an object, not {type(given).__name__}.")
    return dict(given)


def precision_of(config: Mapping[str, Any]) -> str:
    """In which type the weights of a config.json are stored: fp32 | fp16 | bf16."""
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "fp32")


def mlp_ratio(vision: Mapping[str, Any]) -> float:
    """A factor that int(width * factor) turns into exactly the width inside a vision_config's feed-forward layers.

    Raises:
        CheckpointError: one of the two widths is not a number above 0.
    """
    inner, width = vision["intermediate_size"], vision["hidden_size"]
    if not all(isinstance(size, int) and size > 0 for size in (inner, width)):
        raise CheckpointError(f"config.json: vision_config.intermediate_size and hidden_size are widths, not {inner!r} "
                              f"and {width!r}.")
    return inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width


def completed_text(text: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a text_config, None only if None is not the default of its class.

    Raises:
        CheckpointError: it names no kind of language model that transformers has.
    """
    from transformers import CONFIG_MAPPING

    kind = str(text.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"config.json: text_config.model_type is {kind!r}, which the installed transformers does "
                              "not have.")
    defaults = _defaults(CONFIG_MAPPING[kind])
    kept = {key: value for key, value in text.items() if value is not None or defaults.get(key) is not None}
    return {"vocab_size": defaults.get("vocab_size"), **kept}


def refuse_uncarried(config: Mapping[str, Any]) -> None:
    """Raise a CheckpointError that names every field which this package's models cannot follow.

    Args:
        config: what `completed` gave.
    """
    classes = _classes(str(config["model_type"]))
    errors = [error for part in CARRIED for error in _errors(part, config[part] if part else config, classes[part])]
    if errors:
        raise CheckpointError(
            f"config.json: {'; '.join(errors)}. This package's models have the values in brackets, and their outputs "
            "would differ. Nothing was loaded. Run this checkpoint with transformers, or train it with those values.")


def refuse_other_settings(model: object, folder: str | Path) -> None:
    """Raise a CheckpointError if a folder of transformers' BLIP-2 was made with other settings than the model's.

    Only settings that no tensor's shape shows are compared, and only parts that config.json has. Folders without
    such a config.json pass.
    """
    path = Path(folder) / "config.json"
    if not isinstance(model, Blip2Base) or not path.is_file():
        return
    content = json_object(path.read_bytes(), path)
    if content.get("model_type") not in MODEL_TYPES:
        return
    config = completed(content)
    refuse_uncarried(config)
    errors = [f"{part}.{name} is {config[part][name]!r} (this model has {value!r})"
              for part, fields in _settings(model).items() for name, value in fields.items()
              if part in content and config[part][name] != value]
    if errors:
        raise CheckpointError(f"{path}: {'; '.join(errors)}. The tensors would fit, and the outputs would be others. "
                              "Give the section model these values, or convert the folder with `--to lite`, which "
                              "writes them down.")


def _settings(model: Blip2Base) -> dict[str, dict[str, Any]]:
    """What a model has, under transformers' names."""
    cfg = model.qformer.cfg
    found = {"qformer_config": {"num_attention_heads": cfg.num_heads, "layer_norm_eps": cfg.layer_norm_eps,
                                "cross_attention_frequency": cfg.cross_attention_freq}}
    blocks = getattr(getattr(getattr(model, "vision_encoder", None), "vit", None), "blocks", None)
    heads = None if blocks is None else getattr(blocks[0].attn, "num_heads", None)
    if heads is not None:
        found["vision_config"] = {"num_attention_heads": heads}
    return found


def _errors(part: str, fields: Mapping[str, Any], kind: Any) -> Iterator[str]:
    defaults, inert = _defaults(kind), _inert()
    prefix = f"{part}." if part else ""
    for name, value in fields.items():
        wanted = FIXED[part].get(name, defaults.get(name))
        if value != wanted and (name in FIXED[part] or name not in CARRIED[part] | inert):
            yield f"{prefix}{name} is {value!r} (here {wanted!r})"


def _classes(model_type: str) -> dict[str, Any]:
    ensure_torchvision()
    import transformers

    name = "InstructBlip" if model_type == "instructblip" else "Blip2"
    return {"": getattr(transformers, f"{name}Config"),
            "vision_config": getattr(transformers, f"{name}VisionConfig"),
            "qformer_config": getattr(transformers, f"{name}QFormerConfig")}


def _defaults(kind: Any) -> dict[str, Any]:
    content: dict[str, Any] = kind().to_dict()
    return content


def _inert() -> set[str]:
    """Fields without effect on what a model computes: of every configuration, of `generate`, of initialisation."""
    from transformers import GenerationConfig, PretrainedConfig

    return _AT_THE_START | _UNUSED | _defaults(PretrainedConfig).keys() | _defaults(GenerationConfig).keys()
