"""Dialog ranking and AUC, against recorded cases and plain definitions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.ranking import auc, dialog_scores, ndcg, order, rank_scores, ranks, shares

NAN, INF = float("nan"), float("inf")
OFFICIAL = {"r1": "r@1", "r5": "r@5", "r10": "r@10", "mean_rank": "mean", "mrr": "mrr", "ndcg": "ndcg"}


@pytest.mark.shared
def test_dialog_ranking_of_all_recorded_cases(shared_dir: Path) -> None:
    found = json.loads((shared_dir / "data" / "metrics" / "visdial_rank_cases.json").read_text())["cases"]
    assert len(found) == 5
    for case in found:
        want = dict(case["expected"])
        if "gt_index" in case:
            scores = np.array(case["scores"])
            truth = np.array(case["gt_index"])
            placed = np.take_along_axis(ranks(scores), truth[..., None], axis=-1)[..., 0]
            assert placed.tolist() == case["gt_ranks"]
            got = {**dialog_scores(scores, truth), "ndcg": ndcg(scores[:, 0], case["relevance_round0"])}
        else:
            got = {"ndcg": ndcg(case["ndcg_scores"], case["relevance"])}
        assert {OFFICIAL[name]: value for name, value in got.items()} == pytest.approx(want, rel=1e-6, abs=1e-7), (
            case["why"])


def test_order_ranks_and_shares() -> None:
    assert order([0.5, NAN, 2.0, 0.5]).tolist() == [2, 0, 3, 1]
    assert ranks([[0.5, NAN, 2.0, 0.5], [-INF, NAN, NAN, 0.0]]).tolist() == [[2, 4, 1, 3], [2, 3, 4, 1]]
    assert shares([[-1000.0, -1000.0], [0.0, -INF], [NAN, 3.0], [-INF, NAN]]).tolist() == [
        [0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


def test_dialogs_and_their_bad_input() -> None:
    assert rank_scores([1, 2, 20]) == pytest.approx({"r1": 1 / 3, "r5": 2 / 3, "r10": 2 / 3, "mean_rank": 23 / 3,
                                                     "mrr": (1 + 0.5 + 0.05) / 3})
    assert ndcg([[1.0, 2.0], [1.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]]) == 1.0  # the first has no score
    assert ndcg([1.0, 2.0], [0.0, 0.5]) == 1.0
    for call, words in ((lambda: rank_scores([]), "nothing to score"), (lambda: rank_scores([0]), "one is 0"),
                        (lambda: ndcg([[1.0]], [[0.0]]), "no round has a relevant candidate"),
                        (lambda: ndcg([0.0, 1.0, 2.0], [1.0, 0.0]),
                         r"relevances \(1, 2\) do not fit candidates \(1, 3\)"),
                        (lambda: dialog_scores([[0.1, 0.2]], [2]), "of 1 rounds is not among their 2 candidates")):
        with pytest.raises(DataError, match=words):
            call()


def test_auc_is_the_share_of_pairs_in_order() -> None:
    dice = random.Random(3)
    for _ in range(50):
        labels = [0, 1] + [dice.randint(0, 1) for _ in range(dice.randint(0, 30))]
        scores = [dice.randint(0, 6) / 4 for _ in labels]  # many ties
        pairs = [(one > two) + (one == two) / 2 for one, label in zip(scores, labels, strict=True) if label
                 for two, other in zip(scores, labels, strict=True) if not other]
        assert auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auc([NAN, 0.1, -INF], [True, True, False]) == 0.75
    for labels in ([1, 1], [0, 2], [1]):
        with pytest.raises(DataError, match="AUC needs one label.*Check the candidate that run.positive"):
            auc([0.1, 0.2], labels)
