"""VQA accuracy against the official script's recorded scores, and what it says about wrong sets of ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.vqa import (
    Majority,
    Truth,
    answer_score,
    gqa_accuracy,
    normalise,
    vqa_accuracy,
)


@pytest.mark.shared
def test_every_recorded_case_of_the_official_script(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "data/metrics/vqa_cases.json").read_text())
    scores = [answer_score(case["prediction"], case["answers"]) for case in cases["cases"]]
    assert len(scores) == 75
    for case, score in zip(cases["cases"], scores, strict=True):
        assert score == pytest.approx(case["official_score"], abs=1e-10), case["why"]
        without = answer_score(case["prediction"], case["answers"], answer_ids=False)
        assert without == pytest.approx(case["official_score_no_answer_id"], abs=1e-10), case["why"]
        if case["textvqa_mmf"] is not None:  # TextVQA's evaluator takes ten answers only
            by_textvqa = answer_score(case["prediction"], case["answers"], "textvqa")
            assert by_textvqa == pytest.approx(case["textvqa_mmf"], abs=1e-10), case["why"]
    assert 100 * sum(scores) / len(scores) == pytest.approx(cases["overall_percent_rounded_10"], abs=1e-9)


@pytest.mark.shared
def test_every_recorded_pair_of_the_normaliser(shared_dir: Path) -> None:
    pairs = json.loads((shared_dir / "data/metrics/vqa_normalizer_pairs.json").read_text())
    assert len(pairs) == 22
    assert [normalise(pair["raw"]) for pair in pairs] == [pair["official"] for pair in pairs]


@pytest.mark.parametrize(("answers", "prediction", "official", "normalised"), [
    (["yes"] * 10, "Yes.", 0.0, 1.0),
    (["yes"] * 9 + ["no"], "Yes.", 1.0, 1.0),
    (["cat"] * 2 + ["dog"] * 8, "a cat", 0.6, 0.6),
    (["2"] * 10, "two", 0.0, 1.0),
])
def test_unanimous_answers_are_compared_as_they_are_unless_asked(answers: list[str], prediction: str, official: float,
                                                                 normalised: float) -> None:
    assert answer_score(prediction, answers) == pytest.approx(official)
    assert answer_score(prediction, answers, "normalised") == pytest.approx(normalised)


def test_a_single_answer_is_compared_exactly() -> None:
    assert answer_score("dog", ["dog"]) == 0.0  # nobody is left when one is left out
    assert [answer_score(text, ["a dog"], "exact") for text in ("Dog.", "cat")] == [1.0, 0.0]


def test_an_empty_answer_scores_nothing_but_by_the_scripts_quirk() -> None:
    letters = ["a"] * 9 + ["b"]
    assert [answer_score(" \n", letters, rule) for rule in ("normalised", "exact", "thirds", "halves")] == [0.0] * 4
    assert answer_score("", letters) == 1.0 and answer_score("", ["yes"] * 10) == 0.0


def test_gqa_is_the_exact_rule() -> None:
    assert gqa_accuracy({1: "The Dog.", 2: "cat"}, {1: "dog", 2: "cats"}) == 0.5
    with pytest.raises(DataError, match="1 prediction is for an unknown question, the first for question_id 3"):
        gqa_accuracy({1: "a", 3: "b"}, {1: "a", 2: "b"})


def test_accuracy_by_type() -> None:
    truths = {1: Truth(["red"] * 10, "what color", "other"), 2: Truth(["yes"] * 10, "is the", "yes/no"),
              "3": Truth(["no"] * 10, "is the", "yes/no")}
    scores = vqa_accuracy({1: "red", 2: "yes", "3": "yes"}, truths)
    assert scores == pytest.approx({"accuracy": 2 / 3, "accuracy_answer_other": 1.0, "accuracy_answer_yes_no": 0.5,
                                    "accuracy_question_what_color": 1.0, "accuracy_question_is_the": 0.5})


@pytest.mark.parametrize(("predictions", "words"), [
    ({1: "a", 7: "b"}, "1 prediction is for an unknown question, the first for question_id 7"),
    ({}, "1 of 1 questions have no prediction, the first is question_id 1"),
])
def test_ids_that_do_not_belong_together(predictions: dict[int, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        vqa_accuracy(predictions, {1: Truth(["x"])})


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="no question"):
        vqa_accuracy({}, {})
    with pytest.raises(ValueError, match="no answers"):
        answer_score("x", [])


def test_majority_knows_questions_and_falls_back_to_all() -> None:
    majority = Majority([("Is it red?", "no"), ("is it red? ", "no"), ("is it red?", "yes"), ("how many?", "2"),
                         ("is it blue?", "yes"), ("what?", "yes")])
    assert majority.overall == "yes"
    assert [majority.answer(text) for text in ("is it red?", "HOW MANY?", "never asked?")] == ["no", "2", "yes"]
    with pytest.raises(DataError, match="no answers"):
        Majority([])
