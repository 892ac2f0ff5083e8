"""The rules of single benchmarks: TextVQA's cleaning, VizWiz' records, written answers to ScienceQA's options."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.options import written_option
from lavis_lite.metrics.predictions import read_predictions, read_truths
from lavis_lite.metrics.vqa import RULES, Truth, answer_score, normalise_textvqa, question_scores, vqa_accuracy
from lavis_lite.tasks.vqa import VQARunConfig

CHOICES = ["bilberry", "mushroom", "a fern"]


@pytest.mark.parametrize(("raw", "cleaned"), [
    ("Macy's", "macy 's"), ("s,j,l", "sjl"), ("1,000-yard", "1000 yard"), ("red,white", "redwhite"), ("what?", "what"),
    ("The  Two \n Cats", "2 cats"), ("hes o'clock", "he's o'clock"), ("a.m. 5.30", "am 5.30"), ("", ""), ("A", ""),
    ("it's", "it 's"), (" - x", "x"), ("\n-x", "x"), (",-x", "x"), ("\u00c9t\u00c9", "\u00e9t\u00e9"),
    ("...." * 9, "...."),  # the script's pattern runs 32 times
])
def test_textvqa_cleans_as_its_own_evaluator(raw: str, cleaned: str) -> None:
    assert normalise_textvqa(raw.replace("\n", " ").strip()) == cleaned


def test_textvqa_cleans_unanimous_answers_too_and_gives_soft_scores() -> None:
    assert answer_score("Macy's!", ["macy's"] * 10, "textvqa") == 1
    assert answer_score("sjl", ["s,j,l"] * 2 + ["x"] * 8, "textvqa") == pytest.approx((2 / 3 * 8 + 1 / 3 * 2) / 10)
    assert answer_score("", ["the"] * 10, "textvqa") == 1  # nothing is left of either; as the evaluator
    assert answer_score("x", ["x"] * 3, "textvqa") == pytest.approx(2 / 3)


def by_the_script(prediction: str, records: list[dict[str, str]]) -> float:
    """What a script gives that drops records equal to the one left out; texts that need no cleaning."""
    scores = []
    for left_out in records:
        others = [record for record in records if record != left_out]
        scores.append(min(1.0, sum(record["answer"] == prediction for record in others) / 3))
    return sum(scores) / len(scores)


def test_vizwiz_leaves_out_equal_records_together() -> None:
    mixed = ["yes"] * 6 + ["maybe"] * 4
    assert answer_score("yes", ["yes"] * 10, "vizwiz", confidences=mixed) == 1  # 4 or 6 of the others agree
    assert answer_score("yes", ["yes"] * 10, "vizwiz", confidences=["yes"] * 10) == 0  # nobody is left
    assert answer_score("Yes.", ["yes", "Yes"] * 5, "vizwiz", confidences=mixed) == 1  # cleaned before compared
    assert answer_score("Yes.", ["yes"] * 10, "vizwiz", confidences=mixed) == 0  # unanimous: compared as written
    rng = random.Random(0)
    for _ in range(300):
        count = rng.randint(1, 12)
        answers, sure = rng.choices(["red", "blue"], k=count), rng.choices(["yes", "no", "maybe"], k=count)
        records = [{"answer": answer, "answer_confidence": own} for answer, own in zip(answers, sure, strict=True)]
        right = pytest.approx(by_the_script("red", records))
        assert answer_score("red", answers, "vizwiz", confidences=sure) == right
        assert answer_score("red", records, "vizwiz") == right
    with pytest.raises(ValueError, match="3 confidences do not fit 10 answers"):
        answer_score("yes", ["yes"] * 10, "vizwiz", confidences=mixed[:3])


@pytest.mark.parametrize("text", [
    "B", "b", "(B)", "(b)", "B.", "B)", " b \n", "The answer is B.", "the answer is b", "Answer: (b)", "B. mushroom",
    "(b) mushroom", "B: mushroom", "mushroom", "Mushroom.", "The answer is mushroom.", "The correct answer is (B).",
    "Lichens are eaten.\nSo are ferns. The answer is B.", "I choose option (B)", "answer: Mushroom", "MUSHROOM",
])
def test_forms_that_name_the_second_option(text: str) -> None:
    assert written_option(text, CHOICES) == 1
    assert answer_score(text, ["mushroom"], "scienceqa", choices=CHOICES) == 1


@pytest.mark.parametrize("text", [
    "", ".", "D", "(z)", "The answer is D.", "The answer is A. The answer is B.", "A lichen eats a mushroom", "both",
    "b mushroom", "The answer is Because", "the answer is a lichen", "mushroom and fern",
])
def test_forms_that_name_no_option(text: str) -> None:
    assert written_option(text, CHOICES) is None
    assert answer_score(text, ["mushroom"], "scienceqa", choices=CHOICES) == 0


def test_letters_come_before_texts_and_equal_options_are_all_right() -> None:
    assert written_option("A", ["B", "A"]) == 0 and written_option("I", ["I", "me"]) == 0
    assert written_option("The answer is a fern.", CHOICES) == 2  # no letter: the option's text
    twice = Truth(["fern"], choices=["fern", "moss", "fern"])
    assert question_scores({1: "A", 2: "C"}, {1: twice, 2: twice}, "scienceqa") == {1: 1, 2: 1}


@pytest.mark.parametrize("rule", ["exact", "normalised", "halves"])
def test_what_cleaning_empties_is_compared_as_written(rule: str) -> None:
    assert answer_score("The", ["A"] * 10, rule) == 0  # type: ignore[arg-type]
    assert answer_score("a", ["A"] * 10, rule) == 1  # type: ignore[arg-type]


def test_blanks_around_unanimous_answers_do_not_count() -> None:
    assert answer_score("yes", [" yes\n"] * 10) == 1


def test_every_rule_can_be_named_in_a_yaml() -> None:
    for rule in RULES:
        assert VQARunConfig(vqa_rule=rule).vqa_rule == rule  # type: ignore[arg-type]
    assert {"textvqa", "vizwiz", "scienceqa", "official"} < set(RULES)


# files ----------------------------------------------------------------------------------------------------------------
def put(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_vizwiz_files_are_scored_by_image(tmp_path: Path) -> None:
    answers = [{"answer": "yes", "answer_confidence": own} for own in ["yes"] * 6 + ["no"] * 4]
    truths = read_truths(put(tmp_path, "val.json", [{"image": "v_0.jpg", "answers": answers, "answer_type": "yes/no"}]))
    said = read_predictions(put(tmp_path, "results.json", [{"image": "v_0.jpg", "answer": "yes"}]))
    assert vqa_accuracy(said, truths, "vizwiz") == {"accuracy": 1, "accuracy_answer_yes_no": 1}
    assert vqa_accuracy(said, truths, "official", answer_ids=False)["accuracy"] == 0
    with_ids = [{**answer, "answer_id": at} for at, answer in enumerate(answers)]
    truths = read_truths(put(tmp_path, "ids.json", {"annotations": [{"question_id": "v_0.jpg", "answers": with_ids}]}))
    with pytest.raises(DataError, match=r"question_id 'v_0.jpg': the rule vizwiz needs annotations with"):
        vqa_accuracy(said, truths, "vizwiz")


def test_textvqa_files_and_lines_of_predictions(tmp_path: Path) -> None:
    truths = read_truths(put(tmp_path, "val.json", {"dataset_type": "val", "data": [
        {"question_id": 3, "image_id": "x", "answers": ["macy's"] * 10}]}))
    said = read_predictions(put(tmp_path, "answers.jsonl", '{"question_id": 3, "text": "Macy\'s"}\n\n'))
    assert vqa_accuracy(said, truths, "textvqa") == {"accuracy": 1}


def test_scienceqa_files_are_scored_from_written_answers(tmp_path: Path) -> None:
    problem = {"question": "?", "choices": CHOICES, "answer": 1, "subject": "natural science", "split": "test"}
    path = put(tmp_path, "problems.json", {"1": problem, "2": problem, "7": {**problem, "split": "val"}})
    truths = read_truths(path, split="test")
    scores = vqa_accuracy({"1": "Because. The answer is B.", "2": "The answer is A."}, truths, "scienceqa")
    assert scores == {"accuracy": 0.5, "accuracy_question_natural_science": 0.5}
    with pytest.raises(DataError, match="the rule scienceqa needs options"):
        vqa_accuracy({1: "B"}, {1: Truth(["mushroom"])}, "scienceqa")
    with pytest.raises(DataError, match="field 'answer' is 4, not the index of one of its 3 choices"):
        read_truths(put(tmp_path, "problems.json", {"1": {**problem, "answer": 4}}))
