"""Scores of candidates against the record of Visual Dialog's own evaluation, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.candidates import auc, ndcg, order_of, rank_scores, ranks_of, share_of


def test_visual_dialogs_record(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "data" / "metrics" / "visdial_rank_cases.json").read_text())["cases"]
    names = {"r1": "r@1", "r5": "r@5", "r10": "r@10", "mean_rank": "mean", "mrr": "mrr"}
    for case in cases[:-1]:
        rounds = [(scores, right) for dialogue, truth in zip(case["scores"], case["gt_index"], strict=True)
                  for scores, right in zip(dialogue, truth, strict=True)]
        ranks = [ranks_of(scores)[right] for scores, right in rounds]
        assert ranks == [rank for dialogue in case["gt_ranks"] for rank in dialogue], case["why"]
        found = rank_scores(ranks)
        assert found == pytest.approx({ours: case["expected"][theirs] for ours, theirs in names.items()}, rel=1e-5)
        dense = [ndcg(dialogue[0], relevance)
                 for dialogue, relevance in zip(case["scores"], case["relevance_round0"], strict=True)]
        assert sum(dense) / len(dense) == pytest.approx(case["expected"]["ndcg"], rel=1e-5)
    last = cases[-1]
    dense = [ndcg(*pair) for pair in zip(last["ndcg_scores"], last["relevance"], strict=True)]
    assert sum(dense) / len(dense) == pytest.approx(last["hand"], rel=1e-6)


def test_order_ranks_and_shares() -> None:
    assert order_of([0.5, float("nan"), 2.0, 0.5]) == [2, 0, 3, 1]
    assert ranks_of([0.5, float("nan"), 2.0, 0.5]) == [2, 4, 1, 3]
    assert share_of([-1000.0, -1000.0], 1) == pytest.approx(0.5)
    assert share_of([0.0, float("-inf")], 1) == 0.0


def test_auc_counts_pairs_and_ties_half() -> None:
    assert auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == pytest.approx(0.75)
    assert auc([0.5, 0.5, 0.5], [True, False, True]) == pytest.approx(0.5)
    assert auc([0.9, 0.1], [True, False]) == 1.0
    with pytest.raises(DataError, match="both classes"):
        auc([0.1, 0.2], [True, True])


def test_faults() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        rank_scores([])
    with pytest.raises(DataError, match="2 relevances for 3 candidates"):
        ndcg([0.0, 1.0, 2.0], [1.0, 0.0])
    assert ndcg([1.0, 2.0], [0.0, 0.0]) == 0.0
