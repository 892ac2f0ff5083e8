"""Candidate answers and indices of soft prompts as callers give them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lavis_lite.errors import ConfigError, shown
from lavis_lite.models.plain_text import as_text

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
