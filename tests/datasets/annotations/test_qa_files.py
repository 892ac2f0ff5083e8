"""Files of questions and answers: layouts, joins, and one report of every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.datasets.annotations.questions import Layout, answer_texts, read_questions
from lavis_lite.datasets.annotations.text_files import read_members
from lavis_lite.errors import ConfigError, DataError

QUESTIONS = [{"question_id": 11, "image_id": 1, "question": "how many?"},
             {"question_id": 12, "image_id": 2, "question": "what?"}]
ANSWERS = [{"question_id": 12, "image_id": 2, "question_type": "what", "answer_type": "other",
            "answers": [{"answer_id": place, "answer": text} for place, text in enumerate(["dog", "cat", "cat"])]},
           {"question_id": 11, "image_id": 1, "answer_type": "number", "multiple_choice_answer": "2",
            "answers": [{"answer_id": 1, "answer": "2"}]}]
PATTERN = "{data_subtype}/COCO_{data_subtype}_{image_id:012d}.jpg"


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def official(folder: Path, questions: Any = QUESTIONS, annotations: Any = ANSWERS) -> list[Path]:
    return [write(folder, "q.json", {"info": {"year": 2017}, "questions": questions, "data_subtype": "val2014"}),
            write(folder, "a.json", {"license": [], "annotations": annotations, "data_subtype": "val2014"})]


def rows(paths: list[Path], required: bool = True, **layout: Any) -> list[dict[str, Any]]:
    table = read_questions(paths, Layout(**layout), required)
    return [table[index] for index in range(len(table))]


def test_official_files_are_joined_by_question_id(tmp_path: Path) -> None:
    first, second = rows(official(tmp_path), image_pattern=PATTERN)
    assert first == {"question": "how many?", "question_id": 11, "image_id": 1, "answer_type": "number",
                     "answers": ["2"], "counts": [1], "image": "val2014/COCO_val2014_000000000001.jpg"}
    assert (second["answers"], second["counts"], second["question_type"]) == (["cat", "dog"], [2, 1], "what")
    assert rows(official(tmp_path)[::-1], image_pattern=PATTERN) == [first, second]  # files in any order


def test_questions_of_other_types_are_left_out(tmp_path: Path) -> None:
    typed = [{**ANSWERS[0]}, {**ANSWERS[1], "question_type": "how"}]
    (row,) = rows(official(tmp_path, annotations=typed), image_pattern=PATTERN, types=["how"])
    assert row["question_id"] == 11
    message = r"question_types.train: no question is of type 'wha'; did you mean 'what'"
    with pytest.raises(DataError, match=message):
        rows(official(tmp_path, annotations=typed), image_pattern=PATTERN, types=["how", "wha"], split="train")
    untyped = [{key: value for key, value in row.items() if key != "question_type"} for row in ANSWERS]
    with pytest.raises(DataError, match="the questions of these files have no question_type"):
        rows(official(tmp_path, annotations=untyped), image_pattern=PATTERN, types=["how"])


def test_a_split_without_annotations_has_no_answers(tmp_path: Path) -> None:
    paths = official(tmp_path)[:1]
    assert all("answers" not in row for row in rows(paths, required=False, image_pattern=PATTERN))
    with pytest.raises(DataError, match=r"q.json:1: field 'answers' \(or 'answer'\) is missing, for question_id 11"):
        rows(paths, image_pattern=PATTERN)


def test_a_coco_file_names_the_images(tmp_path: Path) -> None:
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [{"id": 5, "image_id": 1, "caption": "x"}]}
    found = rows([*official(tmp_path), write(tmp_path, "c.json", coco)])
    assert [row["image"] for row in found] == ["a.jpg", "b.jpg"]


def test_lists_of_lavis(tmp_path: Path) -> None:
    flat = [{"image": "a.jpg", "question": "q?", "answer": ["yes", "no", "yes"], "question_id": 3, "dataset": "vqa"},
            {"image": "b.jpg", "question": "r?", "answer": "red", "question_id": "x4"}]
    first, second = rows([write(tmp_path, "f.json", flat)])
    assert (first["answers"], first["counts"], first["question_id"]) == (["yes", "no"], [2, 1], 3)
    assert (second["answers"], second["counts"], second["question_id"]) == (["red"], [1], "x4")
    unnamed = [{key: value for key, value in row.items() if key != "question_id"} for row in flat]
    assert [row["question_id"] for row in rows([write(tmp_path, "g.json", unnamed)])] == [0, 1]


def test_flat_questions_take_official_answers(tmp_path: Path) -> None:
    flat = [{"image": "a.jpg", **row} for row in QUESTIONS]
    found = rows([write(tmp_path, "f.json", flat), official(tmp_path)[1]])
    assert [row["answers"] for row in found] == [["2"], ["cat", "dog"]] and found[0]["image"] == "a.jpg"


def test_columns_of_other_names_and_rows_by_key(tmp_path: Path) -> None:
    content = {"07": {"imageId": "n1", "q": "is it?", "reply": "yes"}, "08": {"imageId": "n2", "q": "who?", "reply": 3}}
    columns = {"question": "q", "answer": "reply", "image_id": "imageId", "question_id": "id"}
    found = rows([write(tmp_path, "k.json", content)], columns=columns, key_column="id", image_pattern="{imageId}.jpg")
    assert [(row["question_id"], row["image"], row["answers"]) for row in found] == [
        ("07", "n1.jpg", ["yes"]), ("08", "n2.jpg", ["3"])]
    with pytest.raises(ConfigError, match=r"columns.qestion: no such column; did you mean 'question'"):
        Layout(columns={"qestion": "q"})
    with pytest.raises(ConfigError, match="must be the name of a column"):
        Layout(image_pattern="{image_id.real}")


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    more = [{"question_id": number, "image_id": 3, "question": text} for number, text in ((14, "why?"), (15, " "),
                                                                                           (16, "?"))]
    questions = [*QUESTIONS, QUESTIONS[0], *more]
    annotations = [*ANSWERS, {"question_id": 15, "image_id": 3, "answers": []},
                   {"question_id": 16, "answers": [{"answer": None}]}, {"answers": ["x"]}]
    with pytest.raises(DataError) as fault:
        rows(official(tmp_path, questions, annotations), image_pattern=PATTERN)
    said = str(fault.value)
    assert "6 faulty annotation rows" in said
    for words in (r"q.json:3: question_id 11 was there before, at", "question_id 14 has no annotation",
                  "q.json:5: field 'question' is empty", "a.json:3: field 'answers' has no answer: it is empty, for "
                  "question_id 15", "a.json:4: field 'answers' [0] must be text, not null, for question_id 16",
                  "a.json:5: field 'question_id' is missing"):
        assert words in said


def test_images_that_nobody_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image: the row has no 'image' and its image_id 1 is in no list"):
        rows(official(tmp_path))
    with pytest.raises(DataError, match="image_pattern takes 'split_name', which the row has not"):
        rows(official(tmp_path), image_pattern="{split_name}.jpg")
    with pytest.raises(DataError, match="does not fit"):
        rows(official(tmp_path), image_pattern="{data_subtype:d}.jpg")


def test_files_without_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.json: no questions. Give a list of rows"):
        rows(official(tmp_path)[1:])
    with pytest.raises(DataError, match="no rows"):
        rows([write(tmp_path, "e.json", {"questions": []})], required=False)


@pytest.mark.parametrize("value", [[], "", " ", ["", ""], [{}], True, {"a": 1}, [["x"]], "\ud800"])
def test_answers_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"empty|must be text|surrogate"):
        answer_texts(value)


def test_an_annotator_may_be_silent() -> None:
    assert answer_texts(["", "a ", "a", "b"]) == {"answers": ["a", "", "b"], "counts": [2, 1, 1]}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["vizwiz", "textvqa"])
def test_published_records(shared_dir: Path, tmp_path: Path, name: str) -> None:
    content = json.loads((shared_dir / f"data/schemas/{name}_vqa_format.json").read_text())
    paths = [write(tmp_path, f"{kind}.json", content[kind]) for kind in ("questions", "annotations")]
    found = rows(paths, image_pattern="{image_id}")
    assert len(found) == len(content["questions"]["questions"]) and all(sum(row["counts"]) == 10 for row in found)
    assert all(len(row.get("confidences", [])) == (10 if name == "vizwiz" else 0) for row in found)


@pytest.mark.parametrize("content", ['{"a": 1', '{"a" 1}', '{"a": [1, 2}', '{"questions": [1] "b": 2}', "{3: 4}",
                                     '{"a": [1]} {"a": [2]}'])
def test_members_of_files_that_are_no_json(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="x.json"):
        for _, value in read_members(write(tmp_path, "x.json", content)):
            list(value if hasattr(value, "__iter__") else [])


def test_members_are_read_one_by_one_and_may_be_left(tmp_path: Path) -> None:
    path = write(tmp_path, "x.json", '\ufeff{"a": [1, 2, 3], "b": {"c": [4]}, "d": [], "e": [5]}')
    seen = []
    for name, value in read_members(path):
        seen.append((name, next(iter(value)) if name == "a" else list(value)))
    assert seen == [("a", (1, 1)), ("b", ["c"]), ("d", []), ("e", [(1, 5)])]
    assert [name for name, _ in read_members(write(tmp_path, "y.json", "{ }"))] == []


def test_lists_that_would_not_be_read_are_named(tmp_path: Path) -> None:
    content = {"info": {}, "licenses": [{"id": 1}], "tags": ["a"], "questions": QUESTIONS}
    plain = write(tmp_path, "q.json", content)
    assert len(rows([plain], required=False, image_pattern="{image_id}.jpg")) == 2
    lost = write(tmp_path, "lost.json", {**content, "entries": QUESTIONS})
    with pytest.raises(DataError, match="lost.json: entries: is a list of rows that would not be read"):
        rows([lost], required=False, image_pattern="{image_id}.jpg")


def test_annotations_of_other_questions(tmp_path: Path) -> None:
    as_text = [{**answer, "question_id": str(answer["question_id"])} for answer in ANSWERS]
    with pytest.raises(DataError, match="question_id 11 has no annotation; .*a.json:2 has it as text: ids"):
        rows(official(tmp_path, annotations=as_text), image_pattern=PATTERN)
    other = [{**answer, "image_id": 3} for answer in ANSWERS]
    with pytest.raises(DataError, match="question_id 11 is about image_id 1, but .*a.json:2 is about 3"):
        rows(official(tmp_path, annotations=other), image_pattern=PATTERN)
    more = [*ANSWERS, {**ANSWERS[0], "question_id": 99}]
    with pytest.warns(UserWarning, match="which are not used: 1, the first is question_id 99 at .*:3"):
        assert len(rows(official(tmp_path, annotations=more), image_pattern=PATTERN)) == 2


@pytest.mark.parametrize(("answer", "choices", "right"), [
    (1, ["cat", "dog"], False), ("1", ["cat", "dog"], False), ("2", ["1", "2"], True), (2, ["1", "2"], True),
    ("B", ["cat", "dog"], True), ("bird", ["cat", "dog"], True)])
def test_an_index_of_a_choice_is_not_learned_as_an_answer(answer, choices, right):
    """Letters may be what is to be answered, and annotators may answer freely."""
    layout = Layout(columns={"choices": "choices"})
    if right:
        assert layout.answer(answer, {"choices": choices})["answers"] == [str(answer)]
        return
    with pytest.raises(ValueError, match="none of the 2 choices; if it is the index of one, from 0, name its"):
        layout.answer(answer, {"choices": choices})
