"""Files scored without a run: what comes out, and what is said of files that cannot be scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.metrics.anls import anls
from lavis_lite.metrics.caption_report import caption_report
from lavis_lite.metrics.captions import caption_scores
from lavis_lite.metrics.predictions import by_id, read_predictions, read_references, read_truths
from lavis_lite.metrics.retrieval import as_lists
from lavis_lite.metrics.vqa import Truth, vqa_accuracy


def put(folder: Path, content: Any) -> Path:
    path = folder / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_captions_of_a_file_against_those_of_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    references, domains = read_references(put(tmp_path, {
        "images": [{"id": 0, "domain": "in-domain"}, {"id": 1, "domain": "out-domain"}, {"id": 2}],
        "annotations": [{"id": 5, "image_id": 0, "caption": "a cat"}, {"id": 6, "image_id": 0, "caption": "cats"},
                        {"id": 7, "image_id": 1, "caption": "a dog"}, {"id": 8, "image_id": 2, "caption": "men"}]}))
    said = read_predictions(put(tmp_path, [{"image_id": 1, "caption": "a dog"}, {"image_id": 0, "caption": ""}]))
    assert (said, references[0], domains) == ({1: "a dog", 0: ""}, ["a cat", "cats"], {0: "in-domain", 1: "out-domain"})
    with caplog.at_level(logging.WARNING):
        found = caption_report(said, references, ["rouge_l"], domains)
    assert found.scores == {"ROUGE_L": 0.5, "ROUGE_L_out-domain": 1, "ROUGE_L_in-domain": 0, "empty_captions": 1,
                            "agg_metrics": 0.5}
    assert "1 of 3 images with references have no caption; ids: 2. The scores ignore them" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 captions have no reference; ids: 9\."):
        caption_scores({**said, 9: "x"}, references)


def test_answers_of_a_file_against_official_annotations(tmp_path: Path) -> None:
    truths = read_truths(put(tmp_path, {"annotations": [
        {"question_id": 4, "question_type": "is it", "answer_type": "yes/no",
         "answers": [{"answer": "yes", "answer_id": at} for at in range(10)]}]}))
    assert truths == {4: Truth(["yes"] * 10, "is it", "yes/no")}
    said = read_predictions(put(tmp_path, [{"question_id": 4, "answer": "yes"}]))
    assert vqa_accuracy(said, truths)["accuracy_answer_yes_no"] == 1
    with pytest.raises(DataError, match="1 prediction is for an unknown question, the first for question_id 5"):
        vqa_accuracy({**said, 5: "no"}, truths)
    with pytest.raises(DataError, match="1 of 1 questions have no prediction, the first is question_id 4"):
        vqa_accuracy({}, truths)


@pytest.mark.parametrize(("content", "words"), [
    ([{"image_id": at, "caption": "a"} for at in (3, 3, 4)], r"1 ids have more than one prediction: 3"),
    ([{"image_id": 3, "captoin": "a"}], r"file.json:1: has no 'answer' or 'caption' or 'prediction' or 'text';"),
    ([{"caption": "a"}], "has no 'question_id' or"), ([3], "must be an object of named fields, not int"),
    ([{"image_id": None, "caption": "a"}], "'image_id' is None, which is neither a number nor text"),
    ([{"image_id": 3, "caption": ["a"]}], r"'caption' is of the wrong kind: \['a'\]"),
    ({"3": "a"}, "must be a JSON list of predictions"), ("[{", "cannot be read as JSON"),
])
def test_predictions_that_cannot_be_scored(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_predictions(put(tmp_path, content))


def test_files_that_are_no_references(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_predictions(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="must be a COCO captions file"):
        read_references(put(tmp_path, []))
    with pytest.raises(DataError, match=r"annotations\[1\]: has no 'caption'; did you mean 'captions'"):
        read_references(put(tmp_path, {"annotations": [{"image_id": 1, "captions": "x"}]}))
    for notes, words in (([{"question_id": 1, "answers": []}], "must be a list of answers"),
                         ([{"question_id": 1, "answers": ["a"]}] * 2, "question_id 1 was there before"),
                         ("x", "official VQA")):
        with pytest.raises(DataError, match=words):
            read_truths(put(tmp_path, {"annotations": notes}))
    assert by_id([{"questionId": "7", "prediction": "red"}]) == {"7": "red"}


def test_rules_by_name_and_answers_that_are_no_text() -> None:
    many, few = {1: Truth(["yes"] * 4 + ["no"] * 6)}, {1: Truth(["yes", "no"])}
    assert vqa_accuracy({1: "yes"}, many, "auto") == vqa_accuracy({1: "yes"}, many, "official")
    assert vqa_accuracy({1: "yes"}, few, "auto") == {"accuracy": 1}
    with pytest.raises(ConfigError, match="unknown rule 'offical' for answers; did you mean 'official'"):
        vqa_accuracy({1: "yes"}, many, "offical")  # type: ignore[arg-type]
    for odd in (3, None, True, ["yes"]):
        with pytest.raises(DataError, match="question_id 1: the prediction must be text; it is "):
            vqa_accuracy({1: odd}, many)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="question_id '1'. The annotations have 1: ids must be numbers in both files"):
        vqa_accuracy({"1": "yes"}, many)


@pytest.mark.parametrize(("images", "reason"), [
    (3, "field 'images' must be a list of objects, not int"), ([{"domain": "x"}], r"images\[1\]: has no 'id'"),
    ([{"id": [1], "domain": "x"}], r"images\[1\]: field 'id' is of the wrong kind"),
    ([{"id": 1, "domain": ["x"]}], r"images\[1\]: field 'domain' is of the wrong kind")])
def test_domains_that_cannot_be_read(images: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_references(put(tmp_path, {"images": images, "annotations": [{"image_id": 1, "caption": "a"}]}))


def test_questions_without_what_their_score_needs() -> None:
    with pytest.raises(DataError, match="question_id 1: the rule official needs the answers of annotators"):
        vqa_accuracy({1: "a"}, {1: Truth([])})
    with pytest.raises(DataError, match="question_id 1: it has 1 confidences for 2 answers"):
        vqa_accuracy({1: "a"}, {1: Truth(["a", "b"], confidences=["yes"])}, "vizwiz")
    with pytest.raises(DataError, match="1 of 2 questions have no answers"):
        anls(["a", "b"], [["a"], []])
    with pytest.raises(ConfigError, match="there are no caption scores 'cidr'; did you mean 'cider'"):
        caption_report({1: "a"}, {1: ["a"]}, ["cidr"])
    with pytest.raises(DataError, match="right candidates of query 1 are missing"):
        as_lists({0: [0], 2: [1]})
