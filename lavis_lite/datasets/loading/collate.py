"""Samples -> batch: numbers become tensors, tensors are stacked, everything else stays a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lavis_lite.datasets.loading.policy import IMAGE_ROWS, Failure
from lavis_lite.errors import ContractError, DataError

Batch = dict[str, Any]
Collate = Callable[[Sequence[Any]], "Batch | Failure"]
OWN_KEYS = ("uniform", "bad_samples")
"""keys that the loader adds to samples"""
PICTURES = ("image", "video")


def collate(samples: Sequence[Any]) -> Batch | Failure:
    """Batch of the keys that all samples share.

    Ints become int64[B], floats float32[B], bools bool[B]; arrays and tensors of equal shape are stacked, so `image`
    is float32[B, 3, H, W] and `uniform` float64[B, 2]; strings, lists and dicts stay lists of length B.
    `bad_samples`, the records of unusable samples, is there only when there are some. A batch of which nothing was
    usable has no other key. Samples with `image_rows` share pictures: `image` (or `video`) is then float32[U, 3, H, W],
    every different picture once, and image_rows int64[B] says which one each sample has.

    Raises:
        DataError: tensors of unequal shape under one key.
    """
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
    records = [record for sample in samples for record in sample.get("bad_samples", [])]
    usable = [sample for sample in samples if any(key != "bad_samples" for key in sample)]
    batch: Batch = {}
    if usable:
        keys = [key for key in usable[0] if key != "bad_samples" and all(key in sample for sample in usable)]
        batch = {key: _join(key, [sample[key] for sample in _holders(key, usable)]) for key in keys}
    if records:
        batch["bad_samples"] = records
    return batch


def collate_of(dataset: Any) -> Collate:
    """The function that makes batches of a data set's samples: its own `collater`, if it has one, else `collate`.

    `collater(samples) -> batch` is LAVIS' name. It gets the samples as the data set made them, unusable ones left out.
    """
    own = getattr(dataset, "collater", None)
    return collate if own is None else partial(_collate_by, own)


def _collate_by(collater: Callable[[list[Any]], Batch], samples: Sequence[Any]) -> Batch | Failure:
    """As `collate`, but for what a data set does itself."""
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
    added = collate([{key: sample[key] for key in OWN_KEYS if key in sample} for sample in samples])
    usable = [plain for sample in samples
              if (plain := {key: value for key, value in sample.items() if key not in OWN_KEYS})]
    batch = collater(usable) if usable else {}
    if not isinstance(batch, dict):
        raise ContractError(f"{collater.__qualname__} must return a dict, the batch, not {type(batch).__name__}.")
    return {**added, **batch} if isinstance(added, dict) else added


def _holders(key: str, samples: list[Any]) -> list[Any]:
    """The samples whose value of `key` goes into the batch: of shared pictures the first of each, else all."""
    if key not in PICTURES or IMAGE_ROWS not in samples[0]:
        return samples
    first: dict[int, Any] = {}
    for sample in samples:
        first.setdefault(sample[IMAGE_ROWS], sample)
    return [first[number] for number in sorted(first)]


def _join(key: str, values: list[Any]) -> Any:
    if all(isinstance(value, bool | Number) for value in values):
        kind = torch.float32 if any(isinstance(value, float | np.floating) for value in values) else None
        return torch.tensor(values, dtype=kind)
    if all(isinstance(value, np.ndarray | Tensor) for value in values):
        tensors = [torch.as_tensor(value) for value in values]
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise DataError(f"samples of one batch have {key!r} of different shapes: {', '.join(map(str, shapes))}. "
                            "Give the data sets that are mixed the same vis_processor image_size.")
        return default_collate(tensors)  # a stack that a loader worker makes in shared memory, without a second copy
    return values
