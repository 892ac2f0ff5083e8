"""Texts of an evaluation that the model has no room for: found before it begins, or left out and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lavis_lite.contracts import lacking, need
from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.protocols import LongestFirst
from lavis_lite.errors import TextTooLongError
from lavis_lite.models.protocols import TextMeasurer
from lavis_lite.tasks.base import BaseTask

AT_ONCE = 64
"""rows that are measured together; the longest come first, and a batch in which all fit ends the search"""


@dataclass(frozen=True)
class LongTexts:
    """Rows of a data set with texts that are too long.

    Attributes:
        split: where they are.
        rows: their indices.
        where: file and row of the first one.
        reason: the model's message for the first batch that has any.
        total: rows of the data set.
    """

    split: str
    rows: list[int]
    where: str
    reason: str
    total: int

    def __str__(self) -> str:
        return (f"split {self.split!r}: {len(self.rows)} of {self.total} samples have texts that are too long for the "
                f"language model, the first at {self.where}. {self.reason}")


def long_texts(task: BaseTask[Any, Any], model: object, dataset: object, split: str) -> LongTexts | None:
    """Measure the longest texts of a data set without looking at pictures.

    Args:
        task: builds the prompts.
        model: a `TextMeasurer`; any other is not asked.
        dataset: `LongestFirst`; any other has no long texts.
        split: its name.

    Returns:
        What is too long; None: nothing, as far as is known.
    """
    if not isinstance(model, TextMeasurer) or lacking(dataset, LongestFirst, attributes=False):
        return None
    dataset = need(dataset, LongestFirst, f"split {split!r}")
    task.before_evaluation(dataset, split)
    order, rows, reason = dataset.longest_first(), list[int](), ""
    picture = _no_picture(dataset)
    with torch.no_grad(), model.measuring():
        for start in range(0, len(order), AT_ONCE):
            samples = {row: sample for row in order[start:start + AT_ONCE]
                       if (sample := _sample(dataset, row, picture)) is not None}
            some = list(samples)
            try:
                task.predict(model, _batch(list(samples.values())))
            except TextTooLongError as error:
                rows += [some[row] for row in error.rows]
                reason = reason or str(error)
            else:
                break
    return LongTexts(split, rows, dataset.location(rows[0]), reason, len(dataset)) if rows else None


def _sample(dataset: LongestFirst, row: int, picture: torch.Tensor) -> dict[str, Any] | None:
    """A row's texts; None for a row that is unusable anyway, which the evaluation itself reports."""
    try:
        return dataset.sample(row, None, picture)
    except BadSample:
        return None


def _batch(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate(samples)
    assert isinstance(batch, dict), batch  # no file was read, so none failed
    return batch


def _no_picture(dataset: LongestFirst) -> torch.Tensor:
    """A placeholder for a picture; a video has as many frames as its processor takes."""
    frames = getattr(dataset.vis_processor, "n_frms", None)
    return torch.zeros(3, 1, 1) if frames is None else torch.zeros(3, frames, 1, 1)


def without_rows(batch: Mapping[str, Any], rows: Mapping[int, Any]) -> dict[str, Any]:
    """A batch without some of its samples; pictures that samples share stay.

    Args:
        batch: as `collate` makes it.
        rows: places of the samples to leave out.
    """
    size = len(batch["index"])
    kept = [row for row in range(size) if row not in rows]
    shared = ("image", "video") if "image_rows" in batch else ()
    return {key: value if key in shared else _chosen(value, kept, size) for key, value in batch.items()} if kept else {}


def _chosen(values: Any, kept: list[int], size: int) -> Any:
    if isinstance(values, torch.Tensor):
        return values[kept]
    return [values[row] for row in kept] if isinstance(values, list) and len(values) == size else values
