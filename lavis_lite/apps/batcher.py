"""Requests of several clients answered together: whatever waits while the model computes is its next batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class QueueFull(Exception):
    """So many requests wait that another one would wait too long."""


@dataclass(eq=False)
class _Waiting(Generic[Q, A]):
    request: Q
    kind: Hashable
    answer: Future[A] = field(default_factory=Future)


class Batcher(Generic[Q, A]):
    """One thread that answers requests in batches, the oldest first.

    Args:
        answer: answers a batch, one answer for each request.
        kind: what requests must share to be answered together, such as their decoding options.
        most: requests of a batch.
        waiting: requests that may wait.
        patience: seconds that a batch which is not full waits for others. Clients that were answered together come
            back within milliseconds; without it, half of the batches would have one request.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], kind: Callable[[Q], Hashable], most: int = 8,
                 waiting: int = 64, patience: float = 0.01) -> None:
        self.answer, self.kind, self.most, self.room, self.patience = answer, kind, most, waiting, patience
        self.sizes: list[int] = []
        """of the last thousand batches"""
        self._waiting: list[_Waiting[Q, A]] = []
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="batcher")
        self._thread.start()

    def submit(self, request: Q) -> Future[A]:
        """The answer to come.

        Raises:
            QueueFull: too many requests wait, or the batcher is closed.
        """
        entry: _Waiting[Q, A] = _Waiting(request, self.kind(request))
        with self._changed:
            if self._closed or len(self._waiting) >= self.room:
                raise QueueFull
            self._waiting.append(entry)
            self._changed.notify_all()
        return entry.answer

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._taken():
            usable = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if usable:
                self._answered(usable)

    def _taken(self) -> list[_Waiting[Q, A]]:
        """The next batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(lambda: self._closed or len(self._fitting()) == self.most, self.patience)
            batch = self._fitting()
            self._waiting = [one for one in self._waiting if one not in batch]
            return batch

    def _fitting(self) -> list[_Waiting[Q, A]]:
        """The oldest request and those that may be answered with it."""
        return [one for one in self._waiting if one.kind == self._waiting[0].kind][:self.most]

    def _answered(self, batch: Sequence[_Waiting[Q, A]]) -> None:
        self.sizes = [*self.sizes[-999:], len(batch)]
        try:
            answers = self.answer([one.request for one in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:  # a request that cannot be answered costs no other its answer
                self._answered([one])
            return
        for one, found in zip(batch, answers, strict=True):
            one.answer.set_result(found)
