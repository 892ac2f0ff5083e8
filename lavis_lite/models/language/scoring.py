"""Candidate answers: as callers give them, as ids, and their likelihood after what a language model has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, shown
from lavis_lite.finite import check_finite
from lavis_lite.models.language.rows import Row, check_room, tail
from lavis_lite.models.language.segments import Segments
from lavis_lite.models.plain_text import as_text

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel

Candidates = Sequence[str] | Sequence[Sequence[str]]
"""for all samples, or one list per sample"""
Normalise = Literal["sum", "mean"]
ImageIndex = Sequence[int] | Tensor
"""indices, as a list or int64[B]"""
PAIRS_AT_ONCE = 64
"""pairs of a sample and a candidate that are scored together"""


def candidate_lists(candidates: Candidates, batch: int) -> list[list[str]]:
    """One list of candidates per sample.

    Raises:
        ConfigError: an empty list, or lists that are not one per sample.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or not candidates:
        raise ConfigError(f"candidates must be a list of answers, not {shown(candidates)}.")
    if not any(isinstance(own, (list, tuple)) for own in candidates):
        return [[as_text(text, "candidates") for text in candidates]] * batch
    if len(candidates) != batch:
        raise ConfigError(f"{batch} samples came with {len(candidates)} lists of candidates; give one for each, or one "
                          "list of strings for all.")
    for sample, texts in enumerate(candidates):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ConfigError(f"sample {sample}: its candidates must be a list of answers, not {shown(texts)}.")
        if not texts:
            raise ConfigError(f"sample {sample} has no candidates.")
    return [[as_text(text, "candidates") for text in texts] for texts in candidates]


def check_image_index(image_index: ImageIndex, count: int) -> int:
    """The number of indices, checked.

    Args:
        image_index: B indices.
        count: U, the number of soft prompts.

    Raises:
        ConfigError: not a list of whole numbers from 0 to U - 1.
    """
    values = image_index.tolist() if isinstance(image_index, Tensor) else image_index
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)
             or not 0 <= value < count] if isinstance(values, Sequence) else [values]
    if wrong:
        raise ConfigError(f"image_index: {wrong[0]!r} is none of the {count} soft prompts; give each prompt its soft "
                          f"prompt's index, a whole number from 0 to {count - 1}.")
    return len(values)


def scoring_rows(model: LanguageModel, sequences: Sequence[Segments],
                 candidates: Candidates) -> tuple[list[Row], list[list[list[int]]]]:
    """Rows of B sequences and ids of each one's candidates, if the model has room for them.

    Raises:
        ConfigError: see `LanguageModel.score`.
        TextTooLongError: likewise.
    """
    rows = model.answer_rows(sequences)
    texts = candidate_rows(model, [tail(segments) for segments in sequences], candidates)
    longest = [max(map(len, own)) for own in texts]
    model.room.check_candidates(longest)
    check_room(model.room, rows, longest)
    return rows, texts


def candidate_rows(model: LanguageModel, prompts: Sequence[str],
                   candidates: Candidates) -> list[list[list[int]]]:
    """Ids of the candidates of B prompts.

    Raises:
        ConfigError: see `score`; or a candidate without any token.
    """
    texts = [model.candidate_texts(prompt, own) for prompt, own in
             zip(prompts, candidate_lists(candidates, len(prompts)), strict=True)]
    different = list(dict.fromkeys(text for own in texts for text in own))
    ids = dict(zip(different, model.tokenizer.targets(different, end=model.family.candidate_end), strict=True))
    rows = [[ids[text] for text in own] for own in texts]
    for sample, own in enumerate(rows):
        if not all(own):
            raise ConfigError(f"sample {sample}: a candidate without any token cannot be scored.")
    return rows


def score_table(model: LanguageModel, read: Callable[[], Any], rows: list[list[list[int]]], normalise: Normalise,
                pairs: int) -> Tensor:
    """Scores float[B,C] of each row's candidates after what `read` reads."""
    pairs_of = [(sample, index) for sample, texts in enumerate(rows) for index in range(len(texts))]
    scores = torch.full((len(rows), max(map(len, rows), default=0)), -torch.inf, device=model.home)
    if not rows:
        return scores
    prefix = read()
    for start in range(0, len(pairs_of), pairs):
        some = pairs_of[start:start + pairs]
        found = model.candidate_scores(prefix, [sample for sample, _ in some],
                                       [rows[sample][index] for sample, index in some], normalise)
        check_finite(found, partial(_not_finite, some))
        scores[[sample for sample, _ in some], [index for _, index in some]] = found.to(scores.dtype)
    return scores


def _not_finite(pairs: Sequence[tuple[int, int]], row: int) -> str:
    return f"score: the likelihoods of sample {pairs[row][0]} are NaN or infinite."


def check_samples(soft_prompt: Tensor, width: int, texts: Sequence[Sequence[str]],
                  image_index: ImageIndex | None = None) -> None:
    """Refuse soft prompts of another shape than float[B,Q,width], and anything but B texts.

    Raises:
        ConfigError: says what came.
    """
    if soft_prompt.ndim != 3 or soft_prompt.shape[2] != width:
        raise ConfigError(f"a soft prompt has shape (B, Q, {width}) here, not {tuple(soft_prompt.shape)}.")
    samples = len(soft_prompt) if image_index is None else check_image_index(image_index, len(soft_prompt))
    for rows in texts:
        if isinstance(rows, str) or len(rows) != samples:
            count = "one string" if isinstance(rows, str) else f"{len(rows)} texts"
            raise ConfigError(f"{samples} samples came with {count}; give a list with one for each.")
