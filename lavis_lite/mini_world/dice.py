"""Random choices for scenes and words: repeatable on every platform and Python version, and cheap to start."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws from one stream of random numbers.

    Rests on ``random.Random(int).random()`` alone, the one sequence that Python promises never to change.

    Args:
        key: numbers that name the stream, each at least 0 and below 2^32.
    """

    def __init__(self, *key: int) -> None:
        number = 1
        for part in key:
            number = (number << 32) | part
        self._draw = random.Random(number).random

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self._draw() * count)

    def choose(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._draw() * len(choices))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._draw() < probability

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return low + (high - low) * self._draw()

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        """The choices in random order."""
        items = list(choices)
        for last in range(len(items) - 1, 0, -1):
            other = int(self._draw() * (last + 1))
            items[last], items[other] = items[other], items[last]
        return items
