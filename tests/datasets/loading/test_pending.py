"""Evaluation batches that are not done, divided among ranks."""

from __future__ import annotations

import pytest

from lavis_lite.datasets.loading.loader import EvalBatches, PendingBatches


@pytest.mark.parametrize("done", [(), (0,), (1, 2, 6), tuple(range(7))])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_batch_that_is_left_is_on_one_rank_and_keeps_its_number(done, ranks):
    every = list(EvalBatches(13, 2))
    parts = [PendingBatches(EvalBatches(13, 2), done, rank, ranks) for rank in range(ranks)]
    found = {number: rows for part in parts for number, rows in zip(part.numbers, part, strict=True)}
    assert found == {number: rows for number, rows in enumerate(every) if number not in done}
    assert sum(map(len, parts)) == len(found) and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {(part.samples, part.done_samples) for part in parts} == {(13, sum(len(every[one]) for one in done))}


def test_with_nothing_done_batch_j_is_on_rank_j_modulo_ranks():
    parts = [PendingBatches(EvalBatches(13, 2), (), rank, 3) for rank in range(3)]
    assert [part.numbers for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
