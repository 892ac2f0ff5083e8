"""Columns that a section names and that no row has: refused by every builder, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.config.schema import BuildInfo, FileConfig, ProcessorPair
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.registry import registry

EVAL = {"name": "blip_image_eval", "image_size": 16}
ASKED = [{"image": "a.jpg", "question": "q?", "answer": "x"}]
TOLD = [{"image": "a.jpg", "caption": "a dog"}]


def build(folder: Path, builder: str, rows: list[dict[str, Any]], split: str = "train", **keys: Any) -> Any:
    (folder / "a.json").write_text(json.dumps(rows))
    cls = registry.get_builder_class(builder)
    cfg = cls.config_class(builder=builder, vis_processor=ProcessorPair(dict(EVAL), dict(EVAL)), **keys,
                           build_info=BuildInfo(annotations={split: FileConfig(storage=str(folder / "a.json"))}))
    return cls("mine", cfg).build(split, split == "train")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("key", ["question_id", "image_id", "question_type", "answer_type", "difficult", "choices",
                                 "context", "caption", "ocr_tokens", "answers"])
def test_a_column_that_no_row_has_is_refused(tmp_path: Path, key: str, split: str) -> None:
    with pytest.raises(DataError, match=rf"no row has the column 'zz', .* names for {key}; choose one of: answer"):
        build(tmp_path, "image_qa", ASKED, split, columns={key: "zz"})


@pytest.mark.parametrize(("rows", "keys", "words"), [
    (ASKED, {"answer_column": "ansver"}, "'ansver'.* names for answers; did you mean 'answer'"),
    (ASKED, {"answer_column": ["answer", "a2"]}, "'a2'.* names for answers"),
    (ASKED, {"choices_column": "options"}, "'options'.* names for choices"),
    (ASKED, {"question_id_column": "qid"}, "'qid'.* names for question_id"),
    (ASKED, {"id_column": "img"}, "'img'.* names for image_id; did you mean 'image'"),
    (TOLD, {"id_column": "img"}, "field 'img' is missing"),
])
def test_the_columns_of_custom(tmp_path: Path, rows: Any, keys: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build(tmp_path, "custom", rows, **keys)


def test_a_wrong_name_for_the_answers_is_no_split_without_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'zz', which the data set's section names for answer;"):
        build(tmp_path, "image_qa", ASKED, "val", columns={"answer": "zz"})
    with pytest.raises(DataError, match=r"field 'answers' \(or 'zz'\) is missing"):
        build(tmp_path, "image_qa", ASKED, columns={"answer": "zz"})


def test_the_columns_of_captions(tmp_path: Path) -> None:
    for builder in ("image_caption", "image_retrieval"):
        with pytest.raises(DataError, match="'ids', which the data set's section names for image_id"):
            build(tmp_path, builder, TOLD, columns={"image_id": "ids"})
        with pytest.raises(ConfigError, match=r"mine.columns.imge_id: no such column; did you mean 'image_id'"):
            build(tmp_path, builder, TOLD, columns={"imge_id": "ids"})


def test_one_row_is_enough_and_a_guess_may_be_missing(tmp_path: Path) -> None:
    rows = [*ASKED, {**ASKED[0], "qid": 7, "why": "because"}]
    table = build(tmp_path, "image_qa", rows, columns={"question_id": "qid", "context": "why"}).table
    assert [row.get("context") for row in (table[0], table[1])] == [None, "because"]
    unlabelled = [{"image": "a.jpg", "question": "q?"}]
    assert len(build(tmp_path, "image_qa", unlabelled, "val", columns={"answers": "gold", "answer_type": "kind"})) == 1


def test_a_required_column_that_no_row_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 1 rows are left out, .*: 'imge'"):
        build(tmp_path, "image_qa", ASKED, required=["imge"])


def test_difficult_may_be_a_word(tmp_path: Path) -> None:
    table = build(tmp_path, "image_qa", [{**ASKED[0], "difficult": "True"}, {**ASKED[0], "difficult": "false"}]).table
    assert [table[0]["difficult"], table[1]["difficult"]] == [True, False]
    with pytest.raises(DataError, match="field 'difficult' must be true or false, not text"):
        build(tmp_path, "image_qa", [{**ASKED[0], "difficult": "yes"}])
