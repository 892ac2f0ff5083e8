"""How well images fit candidate texts, by ITC or by ITM: classification by a stage-1 model without training.

Axes: B samples, U different images, C candidates, T different texts, Q queries, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.blip2.base import ImageBatch
from lavis_lite.models.blip2.prompts import as_list
from lavis_lite.models.language.answering import Candidates, candidate_lists

if TYPE_CHECKING:
    from lavis_lite.models.blip2.scoring import Blip2Scorer

TEXTS_AT_ONCE = 256
Texts = list[list[str]]
"""the texts of each sample"""


def candidate_texts(samples: Mapping[str, Any], candidates: Candidates, batch: int) -> Texts:
    """The prompt of each sample with each of its candidates after it."""
    prompts = as_list(samples.get("prompt", ""), batch, "prompt")
    return [[f"{prompt.rstrip()} {candidate}".strip() for candidate in own]
            for prompt, own in zip(prompts, candidate_lists(candidates, batch), strict=True)]


def scores(model: Blip2Scorer, images: ImageBatch, texts: Texts, n_segments: int) -> Tensor:
    """Scores float[B,C] of texts with their images by the model's `ranking_head`; -inf for absent ones.

    Raises:
        ConfigError: fewer than one segment.
    """
    if n_segments < 1:
        raise ConfigError(f"score_candidates: n_segments must be at least 1, not {n_segments}.")
    most = max(map(len, texts), default=0)
    at_once = min(TEXTS_AT_ONCE, max(1, -(-most // n_segments)))
    found = torch.full((len(texts), most), float("-inf"), device=images.image.device)
    by: Callable[..., Iterator[Tensor]] = itm_scores if model.ranking_head == "itm" else itc_scores
    for sample, row in enumerate(by(model, images, texts, at_once)):
        found[sample, :len(row)] = row.float()
    return found


def parts(texts: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Texts, so many at once."""
    return (list(texts[start:start + at_once]) for start in range(0, len(texts), at_once))


def itc_scores(model: Blip2Scorer, images: ImageBatch, texts: Texts, at_once: int) -> Iterator[Tensor]:
    """For each sample float[C], the similarities over ITC's temperature; each different text is encoded once."""
    different = list(dict.fromkeys(chain.from_iterable(texts)))
    column = {text: number for number, text in enumerate(different)}
    query, _ = model.forward_image(images.image)
    queries = objectives.common_space(query, model.vision_proj)                          # float[U,Q,E]
    embeds = torch.cat([objectives.common_space(model.forward_text(part), model.text_proj)
                        for part in parts(different, at_once)])                          # float[T,E]
    similar = objectives.similarity(queries, embeds) / model.temp                        # float[U,T]
    rows = similar if images.index is None else similar[images.index]
    return (row[[column[text] for text in own]] for row, own in zip(rows, texts, strict=True))


def itm_scores(model: Blip2Scorer, images: ImageBatch, texts: Texts, at_once: int) -> Iterator[Tensor]:
    """For each sample float[C], the log-probabilities that image and text fit."""
    _, features = model.forward_image(images.image)
    for sample, own in enumerate(texts):
        row = sample if images.index is None else int(images.index[sample])
        image = model.image_kv(features[row:row + 1])
        logits = [model.match_logits(image, model.tokenize(part)) for part in parts(own, at_once)]
        yield F.log_softmax(torch.cat(logits).float(), 1)[:, 1]
