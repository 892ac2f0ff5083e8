"""transformers' processors for a model of ours: its image processor, its tokenizers, the image token."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints.formats.hf_config import INSTRUCT, LLAVA, QFORMER_TOKENIZER, RETRIEVAL, hf_class
from lavis_lite.errors import CheckpointError
from lavis_lite.torchvision_shim import ensure_torchvision

IMAGE_TOKEN = "<image>"
"""stands in a prompt where a vector of the soft prompt goes"""


def language_tokenizer(model: Any) -> tuple[Any, int]:
    """(a copy of the language model's tokenizer that has the image token, the id of that token).

    Raises:
        CheckpointError: it would start a prompt with other tokens than the model was trained with.
    """
    from tokenizers import AddedToken

    own = model.language_model.tokenizer
    tokenizer = copy.deepcopy(own.loaded)
    _pad_on(tokenizer, "right" if own.encoder else "left", hf_class(model) == INSTRUCT)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if own.family.prompt_start is not None:
        _start_with(tokenizer, own.family.prompt_start)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    texts = ["", "a photo of"]
    found, wanted = tokenizer(texts)["input_ids"], own.prompts(texts)
    if [list(row) for row in found] != [list(row) for row in wanted]:
        raise CheckpointError(f"the tokenizer {own.source!r} cannot be written in transformers' format: it would give "
                              f"{found[1]} for {texts[1]!r}, where this model reads {wanted[1]}.")
    return tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def _pad_on(tokenizer: Any, side: str, instruct: bool = False) -> None:
    """Pad on a side, now and after `save_pretrained`, which writes what the tokenizer was made with.

    InstructBlipProcessor hands a side that is written there to the Q-Former's tokenizer as well, whose text must be
    padded on the right. So it is not written if the tokenizer's class has it anyway, as LLaMA's does.
    """
    tokenizer.padding_side = side
    if instruct and type(tokenizer).padding_side == side:
        tokenizer.init_kwargs.pop("padding_side", None)
    else:
        tokenizer.init_kwargs["padding_side"] = side


def pads_both_texts_left(tokenizer: Any) -> bool:
    """Whether InstructBlipProcessor will pad the Q-Former's text on the left, too."""
    return bool(tokenizer.init_kwargs.get("padding_side") == "left")


def _start_with(tokenizer: Any, token: str) -> None:
    """Let every text begin with a token, in place of what the tokenizer has put there."""
    from tokenizers import processors

    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B",
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))])


def save_processor(model: Any, folder: Path, tokenizer: Any, preprocess: Mapping[str, Any] | None = None) -> None:
    """Write what `Blip2Processor`, `InstructBlipProcessor` or `LlavaProcessor` load.

    Args:
        model: ours.
        folder: beside the weights.
        tokenizer: of `language_tokenizer`; None for retrieval, whose text is the Q-Former's.
        preprocess: parameters of the model's image processor: mean and std, where they are not CLIP's.
    """
    ensure_torchvision()
    from transformers import Blip2Processor, BlipImageProcessor, InstructBlipProcessor

    from lavis_lite.processors.image import MEAN, STD

    given, size = preprocess or {}, model.vision_encoder.image_size
    pixels = {"image_mean": list(given.get("mean") or MEAN), "image_std": list(given.get("std") or STD)}
    if hf_class(model) == LLAVA:
        _save_llava(model.vision_encoder, folder, tokenizer, pixels)
        return
    questions = copy.deepcopy(model.tokenizer.loaded)
    _pad_on(questions, "right")
    image = BlipImageProcessor(size={"height": size, "width": size}, **pixels)
    kind, count = hf_class(model), int(model.query_tokens.shape[1])
    if kind == INSTRUCT:
        InstructBlipProcessor(image, tokenizer, questions, num_query_tokens=count).save_pretrained(folder)
    elif kind == RETRIEVAL:
        Blip2Processor(image, questions).save_pretrained(folder)
        model.tokenizer.loaded.save_pretrained(folder / QFORMER_TOKENIZER)  # without the image token, for the way back
    else:
        Blip2Processor(image, tokenizer, num_query_tokens=count).save_pretrained(folder)


def _save_llava(encoder: Any, folder: Path, tokenizer: Any, pixels: Mapping[str, Any]) -> None:
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = encoder.image_size
    image = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **pixels)
    LlavaProcessor(image, tokenizer, patch_size=encoder.patch_size, num_additional_image_tokens=1,
                   vision_feature_select_strategy="default" if encoder.dropped else "full").save_pretrained(folder)
