"""Lists of conversations: which turns are read, which rows are left out, and what is said about all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.datasets.annotations.dialogues import TurnTable, read_dialogues, without_mark
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.errors import DataError

ASKED = {"from": "human", "value": "<image>\nWho?"}
SAID = {"from": "gpt", "value": "He."}


def read(folder: Path, *rows: Any, **layout: Any) -> TurnTable:
    path = folder / "a.json"
    path.write_text(json.dumps(rows))
    return read_dialogues([path], Layout(**layout), True, "Q: {} A: {}")


def row(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"id": "1", "image": "0.jpg", "conversations": list(turns), **more}


@pytest.mark.parametrize(("value", "left"), [
    ("<image>\nWhat is it?", "What is it?"), ("What is it?\n<image>", "What is it?"), ("<image>What", "What"),
    ("Look at <image> and tell", "Look at and tell"), ("Look\n<image>\nand tell", "Look\nand tell"), ("a  b", "a  b"),
])
def test_the_mark_leaves_no_gap(value, left):
    assert without_mark(value) == left


def test_a_list_of_one_image_and_other_names_of_the_speakers(tmp_path):
    talk = row({"from": "user", "value": "Who?"}, {"from": "assistant", "value": "He."}, image=["0.jpg"])
    assert read(tmp_path, talk)[0] | {"counts": 0} == {
        "image": "0.jpg", "image_id": "1", "question": "Who?", "question_id": "1-1", "history": "", "caption": "",
        "answers": ["He."], "counts": 0}


def test_rows_without_an_image_are_left_out_and_counted(tmp_path):
    bare = {"id": "2", "model": "", "conversations": [ASKED, SAID]}
    rows = [row(ASKED, SAID), bare, row(ASKED, SAID, image=None), row(ASKED, SAID, image="")]
    table = read(tmp_path, *rows, required=["image"])
    assert (len(table), table.left_out) == (1, 3)
    with pytest.raises(DataError, match=r"3 faulty(.|\n)*:2: field 'image' is missing or empty; `required: \[image\]`"):
        read(tmp_path, *rows)
    with pytest.raises(DataError, match="no dialogues; rows that lack what `required` names: 1"):
        read(tmp_path, bare, required=["image"])


def test_what_was_trained_on_is_known_again(tmp_path):
    same, other = (row(ASKED, {"from": "gpt", "value": value}) for value in ("He.", "She."))
    hashes = [read(tmp_path, talk).content_hash() for talk in (same, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_rows_of_other_splits_are_not_read(tmp_path):
    rows = [row(ASKED, SAID, part="train"), {"part": "val"}]
    table = read(tmp_path, *rows, keep=lambda raw: raw["part"] == "train")
    assert (len(table), table.left_out) == (1, 0)


@pytest.mark.parametrize(("talk", "told"), [
    (row({"from": "system", "value": "Be kind."}, ASKED, SAID), "[1]: is a system turn, which is not read; take it"),
    (row(SAID, ASKED, SAID), "[1]: is from 'gpt', but a dialogue begins with a question; take the turn out"),
    (row(ASKED, ASKED, SAID), "[2]: is from 'human' again; questions and answers take turns: join the two turns"),
    (row(ASKED, SAID, ASKED), "[3]: is a question without an answer; take the last turn out"),
    (row({"from": "tool", "value": "x"}, SAID), "[1]: must be from one of human, user, gpt, assistant, not 'tool'"),
    (row({"role": "user", "content": "x"}), "[1]: must be {from, value}, not as {role, content}"),
    (row({"from": "human", "value": [{"type": "text"}]}, SAID), "[1]: value must be text, not a list"),
    (row({"from": "human", "value": "<image> <image> Or?"}, SAID), "[1]: value has 2 marks <image>; a row has one"),
    (row({"from": "human", "value": "<image>"}, SAID), "[1]: value is empty"), (row(), "conversations: has no turns"),
    (row(ASKED, {**SAID, "weight": 0}), "[2]: an answer's weight is not read here; read the file with the"),
    (row(ASKED, {**SAID, "value": "An <image>."}), "[2]: an answer's <image> is not read here; read the file with"),
    (row(ASKED, SAID, system="Be kind."), "'system' is not read here; read the file with the builder"),
    (row(ASKED, SAID, image=["0.jpg", "1.jpg"]), "field 'image' names 2 files; a row has one"),
    ({"image": "0.jpg", "messages": []}, "has its turns in 'messages'; write them as \"conversations\""),
    ({"image": "0.jpg", "query": "x", "response": "y"}, "has its turns in 'query'; write them as"),
    ([1], "must be an object of named fields, not a list"),
])
def test_other_turns_are_named_with_the_way_on(tmp_path, talk, told):
    with pytest.raises(DataError) as caught:
        read(tmp_path, row(ASKED, SAID), talk)
    assert str(caught.value).startswith("1 faulty annotation row") and f"a.json:2: {told}" in str(
        caught.value).replace("a.json:2: conversations[", "a.json:2: [")
