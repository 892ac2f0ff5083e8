"""The few widths of texts."""

from __future__ import annotations

import pytest

from lavis_lite.models.widths import few, step_of, width_at


@pytest.mark.parametrize(("most", "widths"), [
    (32, [8, 16, 24, 32]), (128, [16, 48, 96, 128]), (384, [48, 144, 288, 384]), (5, [5, 5, 5, 5]),
    (20, [8, 8, 16, 20])])
def test_there_are_four_up_to_the_limit(most: int, widths: list[int]) -> None:
    assert [width_at(step, most) for step in range(4)] == widths
    found = [few(longest, most) for longest in range(1, most + 1)]
    assert set(found) == set(widths) and found == sorted(found)
    assert all(longest <= width for longest, width in enumerate(found, 1))


def test_longer_texts_have_twice_the_limit_and_more() -> None:
    assert [few(longest, 32) for longest in (33, 64, 65, 129)] == [64, 64, 128, 256]
    assert step_of(33, 32) == 4
