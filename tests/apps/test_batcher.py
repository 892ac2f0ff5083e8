"""Requests that are answered together: order, kinds, limits, and errors that hurt no other request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from lavis_lite.apps.batcher import Batcher, QueueFull


class Slow:
    """Answers tens; stops in front of a gate, and shows what it was asked together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()

    def __call__(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        self.entered.set()
        assert self.gate.wait(20)
        if 13 in requests:
            raise ValueError("unlucky")
        return [10 * one for one in requests]


def busy(**how: Any) -> tuple[Slow, Batcher[int, int]]:
    """A batcher whose model computes a first request, 0."""
    slow = Slow()
    batcher = Batcher(slow, kind=how.pop("kind", lambda request: None), **how)
    first = batcher.submit(0)
    assert slow.entered.wait(20) and not first.done()
    return slow, batcher


def test_what_waits_is_the_next_batch() -> None:
    slow, batcher = busy(most=3, patience=0.0)
    answers = [batcher.submit(number) for number in range(1, 6)]
    assert batcher.waiting == 5
    slow.gate.set()
    assert [one.result(20) for one in answers] == [10, 20, 30, 40, 50]
    assert slow.batches == [[0], [1, 2, 3], [4, 5]] and batcher.sizes == [1, 3, 2]
    batcher.close()


def test_kinds_are_not_mixed_and_the_oldest_is_first() -> None:
    slow, batcher = busy(kind=lambda request: request % 2, patience=0.0)
    answers = [batcher.submit(number) for number in (1, 2, 3, 4)]
    slow.gate.set()
    assert [one.result(20) for one in answers] == [10, 20, 30, 40] and slow.batches == [[0], [1, 3], [2, 4]]
    batcher.close()


def test_a_batch_waits_a_moment_for_others_but_not_when_it_is_full() -> None:
    slow = Slow()
    slow.gate.set()
    batcher = Batcher(slow, lambda request: None, most=2, patience=20.0)
    assert [one.result(10) for one in [batcher.submit(1), batcher.submit(2)]] == [10, 20] and slow.batches == [[1, 2]]
    batcher.close()


def test_one_bad_request_costs_no_other_its_answer() -> None:
    slow, batcher = busy(patience=0.0)
    answers = [batcher.submit(number) for number in (1, 13, 2)]
    slow.gate.set()
    assert answers[0].result(20) == 10 and answers[2].result(20) == 20
    with pytest.raises(ValueError, match="unlucky"):
        answers[1].result(20)
    assert batcher.alive and batcher.submit(4).result(20) == 40
    batcher.close()


def test_a_full_queue_and_a_closed_one_refuse() -> None:
    slow, batcher = busy(waiting=2, patience=0.0)
    kept = [batcher.submit(1), batcher.submit(2)]
    with pytest.raises(QueueFull):
        batcher.submit(3)
    slow.gate.set()
    batcher.close()
    assert [one.result(0) for one in kept] == [10, 20], "what waited is answered"
    with pytest.raises(QueueFull):
        batcher.submit(4)


def test_a_request_that_was_given_up_is_not_computed() -> None:
    slow, batcher = busy(patience=0.0)
    gone, kept = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    slow.gate.set()
    assert kept.result(20) == 20 and slow.batches == [[0], [2]]
    batcher.close()
