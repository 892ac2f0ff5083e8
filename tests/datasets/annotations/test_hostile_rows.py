"""Rows as exports leave them (nulls, nested ids, numbers as floats, ids twice): one clear error, or the right row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.config.schema import FileConfig
from lavis_lite.datasets.annotations.chats import ChatLayout, read_conversation
from lavis_lite.datasets.annotations.dialogues import read_dialogues, read_relevance
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.questions import read_questions
from lavis_lite.datasets.files.image_paths import ImagePattern
from lavis_lite.datasets.files.locate import one_source
from lavis_lite.errors import ConfigError, DataError

ROW = {"image": "a.jpg", "question": "what?", "answer": "x", "question_id": 1}
ASKED = {"question_id": 1, "image_id": 5, "question": "what?"}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def questions(folder: Path, *files: Any, required: bool = True, **layout: Any) -> list[dict[str, Any]]:
    paths = [write(folder, f"{number}.json", content) for number, content in enumerate(files)]
    return list(read_questions(paths, Layout(**layout), required).skim())


def dialogues(folder: Path, content: Any, training: bool = True) -> list[dict[str, Any]]:
    return list(read_dialogues([write(folder, "d.json", content)], Layout(), training, "Q: {} A: {}").skim())


def visdial(*rows: dict[str, Any]) -> dict[str, Any]:
    turn = {"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1}
    return {"data": {"questions": ["q"], "answers": ["a", "b"],
                     "dialogs": [{"image": "i.jpg", "dialog": [turn], **row} for row in rows]}}


@pytest.mark.parametrize("value", [None, [5], {"a": 1}, True, float("nan")])
def test_a_pattern_makes_no_name_of_what_is_no_value(value: Any) -> None:
    with pytest.raises(ValueError, match="image_pattern '{image_id}.jpg' does not fit: field 'image_id' is "):
        ImagePattern("{image_id}.jpg").fill({"image_id": value})


def test_ids_as_pandas_writes_them_join_two_files(tmp_path: Path) -> None:
    note = {"question_id": 1.0, "image_id": 5.0, "answers": ["y"]}
    (row,) = questions(tmp_path, {"questions": [ASKED]}, {"annotations": [note]}, image_pattern="{image_id}.jpg")
    assert (row["answers"], row["image"]) == (["y"], "5.jpg")
    tokens = [{"image_id": 5.0, "tokens": ["EXIT"]}]
    (row,) = questions(tmp_path, [{**ROW, "image_id": 5}], tokens, columns={"ocr_tokens": "tokens"},
                       join_column="image_id")
    assert row["ocr_tokens"] == ["EXIT"]


def test_a_list_joins_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'image_id' must be a number or text, not a list"):
        questions(tmp_path, [{**ROW, "image_id": [5]}], [{"image_id": 5, "tokens": []}],
                  columns={"ocr_tokens": "tokens"}, join_column="image_id")


def test_an_empty_column_of_answers_hides_no_other(tmp_path: Path) -> None:
    (row,) = questions(tmp_path, [{**ROW, "answers": None}])
    assert row["answers"] == ["x"]


@pytest.mark.parametrize("empty", [None, "", []])
def test_a_split_with_empty_answers_has_no_answers(tmp_path: Path, empty: Any) -> None:
    rows = [{**ROW, "answer": empty}, {**ROW, "answer": empty, "question_id": 2}]
    assert [row["question_id"] for row in questions(tmp_path, rows, required=False) if "answers" not in row] == [1, 2]
    for given, required in ((rows, True), ([ROW, rows[1]], False)):  # training; or a split with some answers
        with pytest.raises(DataError, match="field 'answer' "):
            questions(tmp_path, given, required=required)


def test_an_index_in_other_digits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'at' is '²', not a place among the 2 choices"):
        questions(tmp_path, [{**ROW, "choices": ["a", "b"], "at": "²"}],
                  columns={"choices": "choices", "answer_index": "at"})


@pytest.mark.parametrize(("turns", "words"), [
    ([{"from": ["human"], "value": "a"}], r"must be from one of .*, not \['human'\]"),
    ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], "value must be text, not null"),
])
def test_turns_of_dialogues(tmp_path: Path, turns: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        dialogues(tmp_path, [{"image": "a.jpg", "conversations": turns}])


@pytest.mark.parametrize("name", [[1], {"a": 1}, float("nan"), True])
def test_ids_of_dialogues(tmp_path: Path, name: Any) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    with pytest.raises(DataError, match=":1: field 'id' "):
        dialogues(tmp_path, [{"image": "a.jpg", "id": name, "conversations": turns}])
    with pytest.raises(DataError, match=":1: field 'image_id' "):
        dialogues(tmp_path, visdial({"image_id": name}))


def test_a_dialogue_without_id_has_its_number(tmp_path: Path) -> None:
    rows = dialogues(tmp_path, visdial({"image_id": None}, {}))
    assert [(row["image_id"], row["question_id"]) for row in rows] == [(1, "1-1"), (2, "2-1")]


def test_results_of_two_dialogues_stay_apart(tmp_path: Path) -> None:
    twice = visdial({"image_id": 7}, {"image_id": 7})
    assert len(dialogues(tmp_path, twice)) == 2
    with pytest.raises(DataError, match=":2: image_id 7 was there before, at .*d.json:1"):
        dialogues(tmp_path, twice, training=False)


def test_a_caption_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'caption' must be text, not a number"):
        dialogues(tmp_path, visdial({"image_id": 1, "caption": 5}))


@pytest.mark.parametrize("row", [{"round_id": 1}, {"image_id": 1},
                                 {"image_id": 1, "round_id": 1, "gt_relevance": [float("nan")]}])
def test_relevances_that_belong_nowhere(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=":1: must have image_id, round_id and gt_relevance, a list of numbers"):
        read_relevance(write(tmp_path, "r.json", [{"gt_relevance": [0.5], **row}]))


@pytest.mark.parametrize(("content", "words"), [
    ("a" * 30_000 + "\0", r"^messages\[1\] has a null character"),
    ("a\ud800", r"^messages\[1\] has half of a surrogate"),
    ([{"type": "image", "image": "http://[bad"}], r"^messages\[1\]: part 1 is behind a network address"),
    ([{"type": "image", "image": "file://[bad"}], r"^messages\[1\]: part 1 Invalid"),
])
def test_errors_of_turns_say_which_turn(content: Any, words: str) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=words):
        read_conversation({"messages": turns}, ChatLayout())


def test_a_key_of_one_file_takes_no_two() -> None:
    with pytest.raises(ConfigError, match="datasets.x.answer_list: names 2 files; it is one file"):
        one_source("datasets.x.answer_list", FileConfig(storage=["a.json", "b.json"]), None)
