"""Pictures in one folder per class, several pictures of one question, and videos to search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.config.compose import compose
from lavis_lite.datasets.base import pictures_of
from lavis_lite.errors import DataError
from lavis_lite.mini_world.avi import motion_jpeg
from lavis_lite.registry import registry

PLAIN = {"train": {"name": "blip_image_eval", "image_size": 8}, "eval": {"name": "blip_image_eval", "image_size": 8}}


def built(name: str, changes: dict[str, Any], tmp_path: Path, split: str, training: bool = False) -> Any:
    """The data set of a split of a packaged row with changed files."""
    import yaml

    run = {"model": {"arch": "blip2", "model_type": "mini"}, "run": {"task": "ranking", "evaluate": True},
           "datasets": {name: changes}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    section: Any = compose(tmp_path / "run.yaml").config.datasets[name]
    return registry.get_builder_class(section.builder)(name, section).build(split, training)


def paint(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


# classes --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def classes(tmp_path: Path) -> dict[str, Any]:
    """Three classes, two of one name, with four pictures; the section that reads them."""
    for number, folder in enumerate(("n1", "n2", "n2", "n3")):
        paint(tmp_path / "images" / "val" / folder / f"{number}.png", 60 * number, 0, 0)
    (tmp_path / "names.txt").write_text("n1 tench, Tinca tinca\nn2 crane\nn3 crane\n")
    return {"build_info": {"annotations": {"val": {"storage": str(tmp_path / "names.txt")}},
                           "images": {"storage": str(tmp_path / "images")}}, "vis_processor": PLAIN}


def test_a_folder_is_a_class_and_all_names_are_candidates(classes: dict[str, Any], tmp_path: Path) -> None:
    dataset = built("imagenet", classes, tmp_path, "val")
    assert [dataset.image_name(index) for index in range(4)] == ["val/n1/0.png", "val/n2/1.png", "val/n2/2.png",
                                                                 "val/n3/3.png"]
    assert [dataset.question(index)["answers"] for index in range(4)] == [["tench"], ["crane"], ["crane"], ["crane"]]
    assert dataset.answer_list == ["tench", "crane"] and dataset.whole_list
    assert dataset[3]["text_input"] == "a photo of a" and dataset[3]["image"].shape == (3, 8, 8)
    assert dataset.location(1).endswith("names.txt:2")


@pytest.mark.parametrize(("names", "words"), [
    ("n1 tench\nn9 heron\n", "has no folder for 1 of the 2 classes of .*'n9'"),
    ("n1\n", "must have lines"), ("n1 tench\n", "names 1 classes"), ("n1 tench\nn1 crane\n", "a folder is named twice"),
])
def test_class_files_that_cannot_be(names: str, words: str, classes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(names)
    with pytest.raises(DataError, match=words):
        built("imagenet", classes, tmp_path, "val")


def test_folders_that_are_no_class_are_told(classes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n1 tench\nn2 crane\n")
    with pytest.warns(UserWarning, match=r"val: 1 of its folders are not classes of .*names.txt, .*left out; .*'n3'"):
        assert len(built("imagenet", classes, tmp_path, "val")) == 3


def test_files_beside_the_pictures_are_no_pictures(classes: dict[str, Any], tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (tmp_path / "images" / "val" / "n1" / name).write_bytes(b"x")
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfn1 tench\r\nn2 crane\r\nn3 crane\r\n")  # as Windows writes it
    dataset = built("imagenet", classes, tmp_path, "val")
    assert len(dataset) == 4 and dataset.answer_list == ["tench", "crane"]


# several pictures -----------------------------------------------------------------------------------------------------
def test_a_pair_of_pictures_is_two_frames(tmp_path: Path) -> None:
    for name, red in (("a", 0), ("b", 255)):
        paint(tmp_path / "dev" / f"{name}.png", red, 0, 0)
    rows = [{"images": ["dev/a.png", "dev/b.png"], "sentence": "One is red.", "label": "True"},
            {"images": ["dev/b.png", "dev/b.png"], "sentence": "None is red.", "label": "False"}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    section = {"build_info": {"annotations": {"val": {"storage": str(tmp_path / "dev.json"), "url": None}},
                              "images": {"storage": str(tmp_path)}}, "vis_processor": PLAIN}
    dataset = built("nlvr", section, tmp_path, "val")
    view = dataset[0]["image"]
    assert view.shape == (3, 2, 8, 8) and torch.equal(view[:, 1], dataset[1]["image"][:, 0])
    assert view[0, 0].max() < view[0, 1].min()
    assert [dataset[index]["label"] for index in range(2)] == [0, 1] and dataset[0]["candidates"] == ["true", "false"]
    assert pictures_of(dataset.table[0]) == ["dev/a.png", "dev/b.png"]
    rows[1]["images"] = "dev/b.png"  # type: ignore[assignment]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"dev.json:2: field 'images' must be a list of several file names"):
        built("nlvr", section, tmp_path, "val")


# videos to search -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["msrvtt_retrieval", "didemo_retrieval"])
def test_videos_are_a_gallery(name: str, tmp_path: Path) -> None:
    for number in range(2):
        paint(tmp_path / "frame.jpg", 100 * number, 0, 0)
        frame = (tmp_path / "frame.jpg").read_bytes()
        (tmp_path / f"{number}.avi").write_bytes(motion_jpeg([frame] * 5, 16, 16))
    rows = [{"video": f"{number % 2}.avi", "caption": f"caption {number}"} for number in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    frames = {"image_size": 8, "n_frms": 2}
    entry = {"storage": str(tmp_path / "rows.json"), "url": None}
    section = {"build_info": {"annotations": {"train": entry, "test": entry}, "videos": {"storage": str(tmp_path)}},
               "vis_processor": {"train": frames, "eval": frames}}
    gallery = built(name, section, tmp_path, "test")
    assert gallery.text == ["caption 0", "caption 2", "caption 1"] and gallery.img2txt == {0: [0, 1], 1: [2]}
    assert set(gallery[0]) == {"video", "image_id", "index", "instance_id"}
    assert gallery[0]["video"].shape == (3, 2, 8, 8)
    pairs = built(name, section, tmp_path, "train", training=True)
    assert len(pairs) == 3 and pairs[0]["image_id"] == pairs[2]["image_id"] != pairs[1]["image_id"]
