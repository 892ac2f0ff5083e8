"""A training batch in groups of rows of about the same length, so that little padding is computed.

The rows of a batch are given by its step's number and cannot be chosen by length; within the batch their order is free.
On a CPU, where a matrix product takes as long as its numbers, smaller batches without padding are faster than one with
it; a GPU would rather have one. Results are the same: no row sees another, nor any padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_GROUPS = 4
LEAST_ROWS = 4
WORTH = 0.96
"""groups are made where they leave at most this share of the positions"""


def groups_by_length(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Rows of a batch in groups: one on a GPU, and where lengths differ little.

    Args:
        lengths: positions of every row.
        device: where they are computed.
    """
    whole = [list(range(len(lengths)))]
    if device.type != "cpu":
        return whole
    order = sorted(whole[0], key=lengths.__getitem__)
    size = max(-(-len(order) // MOST_GROUPS), LEAST_ROWS)
    groups = [order[at:at + size] for at in range(0, len(order), size)]
    computed = sum(len(group) * lengths[group[-1]] for group in groups)
    return groups if computed <= WORTH * len(order) * max(lengths) else whole


def run_groups(groups: Sequence[Sequence[int]], counts: Sequence[int],
               run: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Vectors of all rows, in the batch's order: float[T,D].

    Args:
        groups: rows of the batch.
        counts: how many vectors a row has.
        run: rows -> their vectors float[T',D], in the order of the rows.
    """
    if len(groups) == 1:
        return run(groups[0])
    found: dict[int, Tensor] = {}
    for rows in groups:
        found.update(zip(rows, run(rows).split([counts[row] for row in rows]), strict=True))
    return torch.cat([found[row] for row in range(len(counts))])


def take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a batch; the tensor itself where these are all, in order."""
    if list(rows) == list(range(len(tensor))):
        return tensor
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))
