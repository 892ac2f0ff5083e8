"""Recall against a brute-force stable sort, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_lite.metrics.retrieval import (
    MISSED,
    as_lists,
    chance,
    mean_chance,
    ranks_from_candidates,
    ranks_from_scores,
    recall_at,
    recalls,
)


@st.composite
def problems(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    # few distinct values: many ties
    scores = draw(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=columns, max_size=columns),
                           min_size=rows, max_size=rows))
    positives = draw(st.lists(st.lists(st.integers(0, columns - 1), min_size=0, max_size=3),
                              min_size=rows, max_size=rows))
    return scores, positives


def brute_force(row: list[float], found: list[int]) -> int:
    order = sorted(range(len(row)), key=lambda candidate: (-row[candidate], candidate))
    return min((order.index(one) for one in found), default=MISSED)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_ranks_are_those_of_a_stable_sort(problem):
    scores, positives = problem
    expected = [brute_force(row, found) for row, found in zip(scores, positives, strict=True)]
    assert ranks_from_scores(torch.tensor(scores), positives).tolist() == expected
    ordered = torch.tensor(scores).argsort(dim=1, descending=True, stable=True)
    assert ranks_from_candidates(ordered, positives).tolist() == expected


def test_a_constant_model_is_at_chance_and_not_at_the_top():
    ranks = ranks_from_scores(torch.zeros(10, 10), list(range(10)))
    assert recall_at(ranks, 1) == 0.1
    assert recall_at(ranks, 5) == 0.5


def test_nan_ranks_below_every_number():
    scores = torch.tensor([[math.nan, -3.0], [-3.0, math.nan]])
    assert ranks_from_scores(scores, [0, 0]).tolist() == [1, 0]


def test_any_of_several_captions_counts():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    assert ranks_from_scores(scores, {0: [0, 2]}).tolist() == [1]


def test_candidates_without_a_right_one_are_missed():
    ranks = ranks_from_candidates(torch.tensor([[3, 1], [0, 2]]), [[0], [2]])
    assert ranks.tolist() == [MISSED, 1]
    assert recall_at(ranks, 10**6) == 0.5


def test_recalls_has_lavis_names_and_fractions():
    scores = recalls(torch.tensor([0, 4, 20, 9]), torch.tensor([0, 0]))
    assert scores["txt_r1"] == 0.25 and scores["txt_r5"] == 0.5 and scores["txt_r10"] == 0.75
    assert scores["txt_r_mean"] == 0.5 and scores["img_r_mean"] == 1.0 and scores["r_mean"] == 0.75
    assert set(scores) == {f"{way}_r{k}" for way in ("txt", "img") for k in (1, 5, 10, "_mean")} | {"r_mean"}


def test_recall_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        recall_at(torch.empty(0), 1)


def test_positives_may_be_a_mapping_in_any_order_or_plain_numbers():
    assert as_lists({1: 5, 0: [2, 3]}) == [[2, 3], [5]]
    assert as_lists([4, (1, 2)]) == [[4], [1, 2]]


def test_chance_is_what_random_orders_give():
    assert chance(1, 500) == pytest.approx(0.002)
    assert chance(1, 2500, 5) == pytest.approx(0.002)
    assert chance(10, 4) == 1.0
    generator = torch.Generator().manual_seed(0)
    ranks = ranks_from_scores(torch.rand(4000, 12, generator=generator), [[0, 7, 9]] * 4000)
    assert recall_at(ranks, 5) == pytest.approx(chance(5, 12, 3), abs=0.02)
    assert mean_chance(1, 10, [[0], [1, 2, 3]]) == pytest.approx(0.2)
