"""A few widths for texts, so that a compiled model meets a few shapes.

Texts of at most `most` tokens have an eighth, three eighths, three quarters or all of that, in multiples of 8. Longer
texts, which only some callers have, have twice `most`, four times, and so on.
"""

from __future__ import annotations

from itertools import count

SHARES = (1 / 8, 3 / 8, 3 / 4, 1)
MULTIPLE = 8


def width_at(step: int, most: int) -> int:
    """The width of a step, counted from 0."""
    if step >= len(SHARES):
        return most * 2 ** (step - len(SHARES) + 1)
    return min(-(-round(SHARES[step] * most) // MULTIPLE) * MULTIPLE, most)


def step_of(longest: int, most: int) -> int:
    """The first step that has room for so many tokens."""
    return next(step for step in count() if width_at(step, most) >= longest)


def few(longest: int, most: int) -> int:
    """The narrowest of the widths with room for so many tokens."""
    return width_at(step_of(longest, most), most)
