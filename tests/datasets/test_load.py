"""Data sets by name, as LAVIS loads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import lavis_lite
from lavis_lite import dataset_zoo, load_dataset
from lavis_lite.errors import ConfigError, DataError, ErrorList
from tests.datasets.conftest import picture


@pytest.fixture
def captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """COCO's lists in the cache, pictures in a folder of their own."""
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        told = "A Dog." if split == "train" else ["A Dog.", "One."]
        rows = [{"image": "a.jpg", "caption": told, "image_id": "coco_1"}]
        (folder / f"coco_karpathy_{split}.json").write_text(json.dumps(rows))
    (tmp_path / "mine").mkdir()
    picture(1, (9, 7)).save(tmp_path / "mine" / "a.jpg", "PNG")
    return tmp_path


def test_splits_with_images_and_texts_as_they_are(captions: Path) -> None:
    splits = load_dataset("coco_caption", vis_path=captions / "mine")
    assert list(splits) == ["train", "val", "test"] and [len(split) for split in splits.values()] == [1, 1, 1]
    sample = splits["train"][0]
    assert isinstance(sample["image"], Image.Image) and sample["image"].size == (9, 7)
    assert sample["text_input"] == "A Dog." and splits["val"].captions == [["A Dog.", "One."]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", ["datasets", "default"])
def test_a_file_of_ones_own_lies_over_the_row(captions: Path, layout: str) -> None:
    section = {"vis_processor": {"train": {"name": "blip_image_eval", "image_size": 8}},
               "build_info": {"images": {"storage": str(captions / "mine")}}}
    path = captions / "coco.yaml"
    content = {"coco_caption": section} if layout == "datasets" else section
    path.write_text(json.dumps({layout: content}))
    sample = load_dataset("coco_caption", path)["train"][0]
    assert sample["image"].shape == (3, 8, 8) and sample["text_input"] == "A Dog."


def test_what_cannot_be_loaded(captions: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco_caption'"):
        load_dataset("coco_captions")
    with pytest.raises(ConfigError, match="data_type='image' is none of"):
        load_dataset("coco_caption", data_type="image")
    (captions / "bad.yaml").write_text("datasets: {other: {}}")
    with pytest.raises(ConfigError, match=r"no section datasets.coco_caption"):
        load_dataset("coco_caption", captions / "bad.yaml")
    (captions / "bad.yaml").write_text("default: {colour: 1}")
    with pytest.raises(ErrorList, match="unknown key"):
        load_dataset("coco_caption", captions / "bad.yaml")
    with pytest.raises(DataError, match="trainset.json is not here"):
        load_dataset("vqa_rad")


def test_the_list_of_names() -> None:
    names = dataset_zoo.get_names()
    assert len(dataset_zoo) == len(names) > 70 and names["coco_vqa"] == ["default", "lavis", "eval"]
    assert names["coco_vqa_instruct"] == names["coco_vqa"] and "msvd_qa" in names
    from lavis_lite.datasets import load_dataset as same
    assert same is lavis_lite.load_dataset
