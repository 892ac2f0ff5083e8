"""LLaVA: names of its tensors in transformers and in its own release, its config.json, and the section of ours for it.

transformers writes `vision_tower.*`, `multi_modal_projector.linear_1.*`, `language_model.model.*`, and has other names
for the same in memory from version 5 on. The release has LLaMA's names with `model.mm_projector.*` among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite.checkpoints.formats.hf_fields import mlp_ratio, part_of, precision_of
from lavis_lite.checkpoints.formats.key_maps import HF_CLIP_MAP, VIT, Translated, derived, join_qkv
from lavis_lite.errors import CheckpointError
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from lavis_lite.models.vision_language.model import VisionLanguage

BEGINNINGS = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.mm_projector.", "mm_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
"""how names begin in other layouts -> in the files that transformers writes"""
LAYERS = {"multi_modal_projector.linear_1": "0", "multi_modal_projector.linear_2": "2"}


def from_llava(tensors: Mapping[str, Tensor]) -> Translated:
    """LLaVA's layouts -> ours."""
    found, vision = Translated(), {}
    for name, tensor in tensors.items():
        own = next((new + name.removeprefix(old) for old, new in BEGINNINGS if name.startswith(old)), name)
        if derived(own):
            found.dropped[name] = derived(own)
        elif own.startswith("vision_tower."):
            bare = own.removeprefix("vision_tower.").removeprefix("vision_model.")
            vision[f"vision_model.{bare}"] = tensor
        elif own.startswith(("multi_modal_projector.", "mm_projector.")):
            found.tensors[_projector(own)] = tensor
        elif own.startswith("language_model."):
            found.tensors[f"language_model.model.{own.removeprefix('language_model.')}"] = tensor
        else:
            found.unknown.append(name)
    translated = HF_CLIP_MAP.to_ours(join_qkv(vision))
    found.tensors.update(translated.tensors)
    found.unknown += translated.unknown
    return found


def _projector(name: str) -> str:
    """`mm_projector.2.weight`, `mm_projector.weight` or `multi_modal_projector.linear_2.weight` -> ours."""
    layer, _, leaf = name.rpartition(".")
    number = LAYERS.get(layer) or layer.partition(".")[2] or "0"
    return f"connector.layers.{number}.{leaf}"


def to_llava(tensors: Mapping[str, Tensor]) -> Translated:
    """Ours -> what transformers writes. CLIP's last norm, which no feature depends on, is added as it starts."""
    vision = {name: value for name, value in tensors.items() if name.startswith(VIT)}
    found = Translated()
    for name, tensor in HF_CLIP_MAP.to_theirs(vision).tensors.items():
        found.tensors.update(_split_qkv(f"vision_tower.{name}", tensor))
    width = tensors[f"{VIT}norm_pre.weight"]
    found.tensors["vision_tower.vision_model.post_layernorm.weight"] = torch.ones_like(width)
    found.tensors["vision_tower.vision_model.post_layernorm.bias"] = torch.zeros_like(width)
    numbers = {number: layer for layer, number in LAYERS.items()}
    for name, tensor in tensors.items():
        if name.startswith("connector.layers."):
            number, leaf = name.removeprefix("connector.layers.").split(".")
            found.tensors[f"{numbers[number]}.{leaf}"] = tensor
        elif name.startswith("language_model.model."):
            found.tensors[f"language_model.{name.removeprefix('language_model.model.')}"] = tensor
        elif name not in vision:
            found.unknown.append(name)
    return found


def _split_qkv(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if ".qkv." not in name:
        return {name: tensor}
    parts = dict(zip("qkv", tensor.chunk(3), strict=True))
    return {name.replace(".qkv.", f".{letter}_proj."): part.contiguous() for letter, part in parts.items()}


# configurations -----------------------------------------------------------------------------------------------------
def llava_section(config: Mapping[str, Any], folder: Path | str | None = None) -> dict[str, Any]:
    """Keys of a section `model` that builds what a LlavaConfig describes.

    Args:
        config: content of a config.json.
        folder: where it lies, with the tokenizer; None: `llm_tokenizer` is left to the caller.

    Raises:
        CheckpointError: a part that `vision_language` does not have.
    """
    ensure_torchvision()  # transformers imports it
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, LlavaConfig

    # an absent part has other defaults than an empty one
    given = {part: part_of(config, part) for part in ("vision_config", "text_config") if config.get(part) is not None}
    try:
        full: dict[str, Any] = LlavaConfig(**{**config, **given}).to_dict()
    except (StrictDataclassError, AttributeError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: transformers' LlavaConfig refuses it: {error}") from error
    vision, text = full["vision_config"], full["text_config"]
    _refuse(full, vision)
    depth, layers = int(vision["num_hidden_layers"]), full["vision_feature_layer"]
    numbers = [layers] if isinstance(layers, int) else list(layers)
    read = [number if number >= 0 else depth + 1 + number for number in numbers]
    blocks = depth if depth in read else depth - 1  # of ours the last one is followed by a norm, which theirs is not
    kind = text["model_type"]
    sizes = {key: value for key, value in given.get("text_config", {}).items() if value is not None}
    section = {
        "arch": "vision_language", "pretrained": None, "load_pretrained": False, "vit_weights": "random",
        "vit_model": "clip_L", "image_size": vision["image_size"], "vit_precision": precision_of(config),
        "vit_layer": read if len(read) > 1 else read[0],
        "vit_cls": "drop" if full["vision_feature_select_strategy"] == "default" else "keep",
        "vit_args": {"depth": blocks, "width": vision["hidden_size"], "heads": vision["num_attention_heads"],
                     "patch_size": vision["patch_size"], "mlp_ratio": mlp_ratio(vision),
                     "norm_eps": vision["layer_norm_eps"]},
        "connector": {"type": "mlp", "depth": 2},
        "llm_args": {"vocab_size": CONFIG_MAPPING[kind]().vocab_size, "model_type": kind, **sizes},
        "llm_family": kind if kind == "llama" else "general"}
    return section if folder is None else {**section, "llm_tokenizer": str(folder)}


def _refuse(config: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raise a CheckpointError that names what `vision_language` computes in another way."""
    wanted = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu"}
    errors = [f"vision_config.{key} is {vision.get(key)!r} (here {value!r})" for key, value in wanted.items()
              if vision.get(key) != value]
    for key, value in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if config.get(key, value) != value:
            errors.append(f"{key} is {config[key]!r} (here {value!r})")
    if errors:
        raise CheckpointError(f"config.json: {'; '.join(errors)}. This package's LLaVA has the values in brackets, and "
                              "its outputs would differ. Nothing was loaded.")


def llava_config(model: VisionLanguage, text_config: dict[str, Any], image_token: int) -> dict[str, Any]:
    """Content of config.json.

    Args:
        model: ours.
        text_config: of its language model, with as many words as are stored.
        image_token: id of `<image>`.

    Raises:
        CheckpointError: transformers' LLaVA cannot be made to compute what this model does.
    """
    from transformers import LlavaConfig

    encoder: Any = model.vision_encoder
    numbers = [name for name in dict(model.connector.named_parameters()) if name.endswith(".weight")]
    wrong = [sentence for sentence, is_so in (
        (f"its vision encoder is {getattr(encoder, 'name', '?')!r}, not CLIP's", encoder.name != "clip_L"),
        ("its connector is no MLP of two layers", numbers != ["layers.0.weight", "layers.2.weight"]),
        ("its vision encoder ends in a norm", encoder.num_layers == encoder.total_layers),
        ("its language model has an encoder", bool(text_config.get("is_encoder_decoder")))) if is_so]
    if wrong:
        raise CheckpointError(f"this model cannot be written as transformers' LLaVA: {'; '.join(wrong)}. `--to lite` "
                              "takes every model.")
    block, depth = encoder.vit.blocks[0], encoder.num_layers
    layers = [number - depth - 1 for number in encoder.layers]
    vision = {"model_type": "clip_vision_model", "hidden_size": encoder.vit.embed_dim, "num_hidden_layers": depth,
              "intermediate_size": block.mlp.fc1.out_features, "num_attention_heads": block.attn.num_heads,
              "image_size": encoder.image_size, "patch_size": encoder.patch_size, "hidden_act": "quick_gelu",
              "layer_norm_eps": block.norm1.eps}
    content: dict[str, Any] = LlavaConfig(
        vision_config=vision, text_config=text_config, image_token_index=image_token,
        image_seq_length=encoder.num_tokens, vision_feature_layer=layers if len(layers) > 1 else layers[0],
        vision_feature_select_strategy="default" if encoder.dropped else "full").to_dict()
    return {**content, "architectures": ["LlavaForConditionalGeneration"],
            "tie_word_embeddings": text_config["tie_word_embeddings"]}
