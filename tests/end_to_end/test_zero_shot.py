"""Stage 1 without further training: pictures sorted into classes by ITC and ITM, clips found by their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_lite.mini_world.records import describe_scene
from lavis_lite.mini_world.render import encode_jpeg, render
from lavis_lite.mini_world.scenes import Scene, make_scene
from lavis_lite.mini_world.tasks import _clip
from tests.end_to_end.conftest import Train

PER_CLASS = 3
SHAPES = ("circle", "square", "star", "triangle")
RUN = {"evaluate": True, "num_workers": 0, "tensorboard": False, "device": "cpu", "batch_size_eval": 6}


def evaluated(train_here: Train, tmp_path: Path, dataset: dict[str, Any], run: dict[str, Any],
              arch: str) -> dict[str, float]:
    """The scores of the one split of a run."""
    recipe = {"model": {"arch": arch, "model_type": "mini"}, "datasets": dataset,
              "run": {**RUN, **run, "output_dir": str(tmp_path / "out")}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    done = train_here(script="evaluate.py", cfg=str(tmp_path / "run.yaml"), common=["run.seed=1"])
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("out/*/results/*_step0.json")
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics


@pytest.mark.parametrize("arch", ["blip2", "blip2_image_text_matching"])
def test_pictures_are_sorted_into_classes(arch: str, train_here: Train, tmp_path: Path) -> None:
    left = dict.fromkeys(SHAPES, PER_CLASS)
    numbers = iter(range(2000))
    while any(left.values()):
        scene: Scene = make_scene(5, "test", next(numbers))
        shape = scene.objects[0].shape
        if len(scene.objects) == 1 and left.get(shape):
            left[shape] -= 1
            folder = tmp_path / "images" / "val" / f"c_{shape}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{left[shape]}.jpg").write_bytes(encode_jpeg(render(scene)))
    names = tmp_path / "names.txt"
    names.write_text("".join(f"c_{shape} {shape}, a shape\n" for shape in SHAPES))
    section = {"build_info": {"annotations": {"val": {"storage": str(names)}},
                              "images": {"storage": str(tmp_path / "images")}}}
    scores = evaluated(train_here, tmp_path, {"imagenet": section}, {"task": "ranking", "test_splits": ["val"]}, arch)
    assert scores["chance"] == 0.25 and scores["answerable"] == 1 and scores["accuracy"] >= 0.5


def test_clips_are_found_by_their_captions(train_here: Train, tmp_path: Path) -> None:
    rows = []
    for index in range(6):
        record = describe_scene(make_scene(3, "test", index))
        (tmp_path / f"{index}.avi").write_bytes(_clip(record.scene))
        rows.append({"video": f"{index}.avi", "caption": record.captions[0]})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    size = {"image_size": 64, "n_frms": 3}
    section = {"build_info": {"annotations": {"test": {"storage": str(tmp_path / "rows.json")}},
                              "videos": {"storage": str(tmp_path)}}, "vis_processor": {"train": size, "eval": size}}
    scores = evaluated(train_here, tmp_path, {"msrvtt_retrieval": section},
                       {"task": "retrieval", "test_splits": ["test"], "k_test": 4}, "blip2")
    assert scores["itc_txt_r1"] >= 0.5 and scores["itc_img_r1"] >= 0.5 and scores["chance_r1"] < 0.2
