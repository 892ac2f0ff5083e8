"""Which frames of a video a model sees: numbers 0 .. length-1 in order, always as many as asked for.

A video with fewer frames than asked for gives some of them several times, so that clips of one batch have equal shapes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Sampling = Callable[[int, int, random.Random], list[int]]
"""(frames in the video, frames asked for, generator) -> numbers, not decreasing"""


def uniform(length: int, count: int, rng: random.Random | None = None) -> list[int]:
    """The first frame of each of `count` equal parts: LAVIS' choice for evaluation."""
    return [place * length // count for place in range(count)]


def within_segments(length: int, count: int, rng: random.Random) -> list[int]:
    """One random frame of each of `count` equal parts."""
    starts = [*uniform(length, count), length]
    return [rng.randrange(start, max(start + 1, end)) for start, end in zip(starts, starts[1:], strict=False)]


def head_and_tail(length: int, count: int, rng: random.Random) -> list[int]:
    """Different random frames, half of them from each half of the video: LAVIS' choice for training.

    The second half has one more where the count is odd.
    """
    middle = length // 2
    return [*_some(0, middle or length, count // 2, rng), *_some(middle, length, count - count // 2, rng)]


def _some(first: int, end: int, count: int, rng: random.Random) -> list[int]:
    if end - first < count:
        return [first + place for place in uniform(end - first, count)]
    return sorted(rng.sample(range(first, end), count))


SAMPLINGS: dict[str, Sampling] = {"uniform": uniform, "random": within_segments, "headtail": head_and_tail}
"""what `sampling` of a video processor may be"""
