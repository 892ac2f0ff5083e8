"""Attention and Grad-CAM of BLIP-2's stages, and of any encoder, connector and language model together.

Every sample is read alone: its picture, its prompt, and the text to look at. Axes as in `lavis_lite.models.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models.attention import (
    Array,
    Attention,
    GradCam,
    array,
    by_word,
    cams,
    grid_of,
    looking,
    of_features,
    one_picture,
    recorded,
    texts_of,
    words_of,
)
from lavis_lite.models.blip2.base import ImageBatch
from lavis_lite.models.language import attention as language
from lavis_lite.models.outputs import SamplesLike

if TYPE_CHECKING:
    from lavis_lite.models.blip2.scoring import Blip2Scorer
    from lavis_lite.models.blip2.writing import TextWriter


# models with a language model -----------------------------------------------------------------------------------------
def of_text(model: TextWriter, samples: SamplesLike) -> list[Attention]:
    """`TextWriter.attention`."""
    with torch.no_grad():
        grid = grid_of(model)
        return [_attention(model, grid, *found) for found in _readings(model, samples)]


def cam_of_text(model: TextWriter, samples: SamplesLike) -> list[GradCam]:
    """`TextWriter.gradcam`."""
    modules = looking(model)
    if not modules:
        raise ConfigError("gradcam: this model's connector has no attention; its `attention` shows where words look.")
    found, grid = [], grid_of(model)
    with torch.enable_grad():
        for _, reading, kept in _readings(model, samples):
            words, members = words_of(reading.ids, model.language_model.tokenizer.spelled)
            scores = [-reading.losses[own].sum() for own in members]
            found.append(GradCam(words, cams(scores, kept, modules, _features(model)), grid))
    return found


def _readings(model: TextWriter, samples: SamplesLike) -> Iterator[tuple[Tensor, language.Reading, list[Tensor]]]:
    """Of each sample: the vectors of its picture, the text as it is read, what the vectors attend to."""
    if "conversation" in samples:
        raise ConfigError("attention: give a picture and a prompt; conversations are not supported.")
    images, instructions, prompts = model.answer_prompts(samples)
    image, texts = one_picture(images.repeated()), texts_of(model, samples, len(images))
    for number, (instruction, prompt, text) in enumerate(zip(instructions, prompts, texts, strict=True)):
        with recorded(model, looking(model)) as kept:
            [vectors] = model.embed_image(image[number:number + 1], [instruction])
            reading = language.read(model.language_model, model.written_after(vectors, prompt, text))
        yield vectors, reading, kept


def _attention(model: TextWriter, grid: tuple[int, int], vectors: Tensor, reading: language.Reading,
               kept: list[Tensor]) -> Attention:
    words, members = words_of(reading.ids, model.language_model.tokenizer.spelled)
    return Attention(words, array(by_word(reading.weights, members)), _looks(model, len(vectors), kept), grid)


def _looks(model: TextWriter | Blip2Scorer, vectors: int, kept: list[Tensor]) -> Array:
    """Where vectors look, float[C,H',V,P]; a connector's last vectors may be no queries and look at nothing."""
    if not kept:
        return np.eye(vectors, dtype=np.float32)[None, None]
    weights = torch.stack([of_features(one, module, _features(model))
                           for one, module in zip(kept, looking(model), strict=True)])
    return array(torch.nn.functional.pad(weights, (0, 0, 0, vectors - weights.shape[2])))


def _features(model: Any) -> int:
    """P."""
    return int(model.vision_encoder.num_tokens)


# stage 1 --------------------------------------------------------------------------------------------------------------
def of_caption(model: Blip2Scorer, samples: SamplesLike) -> list[Attention]:
    """`Blip2Scorer.attention`."""
    images = one_picture(ImageBatch.of(samples).image)
    texts, special = texts_of(model, samples, len(images)), model.tokenizer.special_ids
    found, grid = [], grid_of(model)
    crossing = looking(model)
    own = [layer.self_attention for layer in model.qformer.blocks]
    for image, text in zip(images, texts, strict=True):
        ids = model.tokenize([text]).ids
        read = torch.cat([torch.full_like(ids[:, :1], special.begin), ids[:, 1:-1]], 1)
        with torch.no_grad(), recorded(model, crossing) as looks, recorded(model, own) as reads:
            features = model.ln_vision(model.encode_image(image[None]))
            model.qformer(model.query_tokens, read, None, features, "multi_modal_causal")
        count = model.query_tokens.shape[1]
        words, members = words_of(ids[0, 1:].tolist(), lambda row: model.tokenizer.decode([row])[0])
        weights = torch.stack(reads)[:, 0, :, count:, :count]
        found.append(Attention(words, array(by_word(weights, members)), _looks(model, count, looks), grid))
    return found


def cam_of_match(model: Blip2Scorer, samples: SamplesLike) -> list[GradCam]:
    """`Blip2Scorer.gradcam`."""
    images, tokens = one_picture(ImageBatch.of(samples).image), model.text_of(samples)
    batch, modules, grid = max(len(images), len(tokens.ids)), looking(model), grid_of(model)
    texts = model.tokenizer.decode(tokens.ids.tolist()) * (batch // len(tokens.ids))
    found = []
    with torch.enable_grad():
        for number, text in enumerate(texts):
            pair = {"image": images[number % len(images)][None], "text_input": text}
            with recorded(model, modules) as kept:
                score = model.match(pair)[0, 1]
            found.append(GradCam((text,), cams([score], kept, modules, _features(model)), grid))
    return found
