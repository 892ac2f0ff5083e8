"""Rows of similar lengths in passes of their own, so that little is computed for padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lavis_lite import distributed

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel

Size = tuple[int, ...]
"""tokens of a row; of an encoder-decoder those that are read and those that are written"""


def passes(model: LanguageModel, sizes: Sequence[Size]) -> list[list[int]]:
    """`length_groups`. One pass if shapes are to be few, or if ranks share blocks: all must run them equally often."""
    alone = model.few_widths or distributed.has_shards(model)
    return [list(range(len(sizes)))] if alone else length_groups(sizes, model.most_padding)


def length_groups(sizes: Sequence[Size], most_padding: float) -> list[list[int]]:
    """Numbers of the rows of each pass, longest rows first. One pass if no more padding than that comes of it."""
    if _padding(sizes, range(len(sizes))) <= most_padding:
        return [list(range(len(sizes)))]
    groups: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=lambda number: sizes[number], reverse=True):
        if groups and _padding(sizes, [*groups[-1], row]) <= most_padding:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _padding(sizes: Sequence[Size], rows: Sequence[int]) -> float:
    """Share of padding if these rows make one batch."""
    chosen = [sizes[row] for row in rows]
    padded = len(chosen) * sum(map(max, zip(*chosen, strict=True)))
    return 1 - sum(map(sum, chosen)) / padded if padded else 0.0


def in_groups(groups: Sequence[Sequence[int]], counts: Sequence[int],
              compute: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """What `compute` gives for all rows, in their order.

    Args:
        groups: as `length_groups` gives them.
        counts: results of each row.
        compute: numbers of rows -> their results, float[T_g, ...].

    Returns:
        float[T, ...].
    """
    if len(groups) == 1:
        return compute(groups[0])
    return in_order(torch.cat([compute(group) for group in groups]), groups, counts)


def in_order(results: Tensor, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """Results float[T,...] that stand as their rows in the groups, in the order of the rows."""
    order = torch.tensor([row for group in groups for row in group for _ in range(counts[row])])
    return results.index_select(0, torch.argsort(order, stable=True).to(results.device, non_blocking=True))
