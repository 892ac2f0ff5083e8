"""The evaluation batches that are not done yet, dealt to the ranks."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from torch.utils.data import Sampler


class Remaining(Sampler[list[int]]):
    """This rank's part of the batches that are left: the i-th of them goes to rank i % world_size.

    With nothing done that is batch j to rank j % world_size. A batch keeps its number whoever computes it and whatever
    was done before.

    Args:
        batches: all batches of the split, rows each, in their order.
        done: numbers of those that are finished.
        rank, world_size: this process among all.

    Attributes:
        numbers: this rank's batches, as numbers among all.
        samples: rows of the split.
        done_samples: rows of the finished batches.
    """

    def __init__(self, batches: Iterable[list[int]], done: Container[int] = (), rank: int = 0,
                 world_size: int = 1) -> None:
        every = list(enumerate(batches))
        left = [(number, rows) for number, rows in every if number not in done]
        mine = left[rank::world_size]
        self.numbers = [number for number, _ in mine]
        self.samples = sum(len(rows) for _, rows in every)
        self.done_samples = self.samples - sum(len(rows) for _, rows in left)
        self._batches = [rows for _, rows in mine]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
