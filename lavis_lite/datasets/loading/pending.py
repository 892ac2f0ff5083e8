"""The evaluation batches that are not done yet, divided among the ranks."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from torch.utils.data import Sampler


class PendingBatches(Sampler[list[int]]):
    """This rank's part of the batches that are not done: the i-th of them goes to rank i % world_size.

    A batch keeps its number, whichever rank computes it and whatever was done before.

    Args:
        batches: all batches of the split, rows each, in their order.
        done: numbers of those that are finished.
        rank, world_size: this process among all.

    Attributes:
        numbers: this rank's batches, as numbers among all.
        samples: number of rows of the split.
        done_samples: number of rows of the finished batches.
    """

    def __init__(self, batches: Iterable[list[int]], done: Container[int] = (), rank: int = 0,
                 world_size: int = 1) -> None:
        batches_by_number = list(enumerate(batches))
        pending = [(number, rows) for number, rows in batches_by_number if number not in done]
        mine = pending[rank::world_size]
        self.numbers = [number for number, _ in mine]
        self.samples = sum(len(rows) for _, rows in batches_by_number)
        self.done_samples = self.samples - sum(len(rows) for _, rows in pending)
        self._batches = [rows for _, rows in mine]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
