"""ANLS, dialog ranking, AUC and accuracies, against recorded cases and plain definitions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.anls import anls, anls_score, levenshtein
from lavis_lite.metrics.ranking import accuracy_by_group, auc, dialog_scores, gqa_accuracy, ndcg, rank_scores, ranks


def cases(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared_dir / "data" / "metrics" / name).read_text(encoding="utf-8"))["cases"]


@pytest.mark.shared
def test_anls_of_all_recorded_cases(shared_dir: Path) -> None:
    found = cases(shared_dir, "anls_cases.json")
    assert len(found) == 24
    for case in found:
        for rule, key in (("stvqa", "mmf_stvqa_anls"), ("spaces", "lmms_eval_anls")):
            assert anls_score(case["prediction"], case["answers"], rule) == pytest.approx(case[key], abs=1e-12), case


def test_anls_by_hand() -> None:
    assert levenshtein("kitten", "sitting") == levenshtein("sitting", "kitten") == 3
    assert levenshtein("", "abc") == 3 and levenshtein("", "") == 0
    assert anls(["stop", "x"], [["Stop "], ["y"]]) == 0.5
    assert anls_score("", [""]) == 1
    with pytest.raises(DataError, match="1 predictions and 2 lists"):
        anls(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no answers"):
        anls_score("a", [])


@pytest.mark.shared
def test_dialog_ranking_of_all_recorded_cases(shared_dir: Path) -> None:
    found = cases(shared_dir, "visdial_rank_cases.json")
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
        assert got == pytest.approx(want, rel=1e-6, abs=1e-7), case["why"]


def test_ranks_and_their_bad_input() -> None:
    assert ranks([[0.1, 0.9, 0.9, -1.0]]).tolist() == [[3, 1, 2, 4]]
    assert rank_scores([1, 2, 20]) == pytest.approx({"r@1": 1 / 3, "r@5": 2 / 3, "r@10": 2 / 3, "mean": 23 / 3,
                                                     "mrr": (1 + 0.5 + 0.05) / 3})
    for call, words in ((lambda: rank_scores([]), "at least one rank"), (lambda: rank_scores([0]), "begin at 1"),
                        (lambda: ranks([float("nan")]), "NaN"), (lambda: ndcg([[1.0]], [[0.0]]), "no relevant option"),
                        (lambda: ndcg([[1.0]], [[0.0, 1.0]]), "one shape")):
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
    for labels in ([1, 1], [0, 2], [1]):
        with pytest.raises(DataError, match="AUC needs one label"):
            auc([0.1, 0.2], labels)


def test_accuracies() -> None:
    assert gqa_accuracy({1: "The Dog.", 2: "cat"}, {1: "dog", 2: "cats"}) == 0.5
    subjects = {1: "natural science", 2: "natural science", 3: "language"}
    assert accuracy_by_group({1: True, 2: False, 3: True}, subjects) == {
        "accuracy": 2 / 3, "accuracy_natural_science": 0.5, "accuracy_language": 1.0}
    with pytest.raises(DataError, match=r"1 predictions are for unknown questions \(\[3\]\), 1 of 2 questions have"):
        gqa_accuracy({1: "a", 3: "b"}, {1: "a", 2: "b"})
