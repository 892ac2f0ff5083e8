"""`data card`: the facts of a data set's row, its builder's samples, and the first row where the files are here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_lite.cli.data_card import card, sample_keys
from lavis_lite.cli.main import main


def test_a_card_says_what_the_row_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    text = card("ok_vqa")
    assert text.startswith("# ok_vqa\n\nOK-VQA: 9,009 / 5,046 questions")
    assert "Type `default`" in text and "Type `lavis`" in text and "Type `lavis`, builder `image_qa`" in text
    assert "[`okvqa/annotations/okvqa_train.json`](https://storage.googleapis.com/" in text
    assert "keys of a sample, training: `image`, `text_input`, `text_output`" in text
    assert "how to get it: Get http://images.cocodataset.org/zips/train2014.zip" in text
    assert "columns: {" in card("iconqa") and card("msvd_qa").count("`video`") == 2
    assert sample_keys("custom").keys() == {"training"}  # what it evaluates depends on the file


def test_the_first_row_of_files_that_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    assert main(["data", "card", "coco_caption"]) == 0
    assert "first row" not in capsys.readouterr().out
    (folder / "coco_karpathy_val.json").write_text(json.dumps([{"image": "val2014/a.jpg", "caption": ["a tram"]}]))
    (tmp_path / "coco" / "images").mkdir()
    assert main(["data", "card", "coco_caption"]) == 0
    said = capsys.readouterr().out
    assert 'The first row of val, as it is read:\n  {"image": "val2014/a.jpg"' in said and "a tram" in said


def test_a_misspelt_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "card", "coco_capton"]) == 2
    assert "did you mean 'coco_caption'" in capsys.readouterr().err
