"""Features of any encoder train every stage from YAML alone: contrast, captions, questions; scores come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.end_to_end.conftest import Train, read_log

RUN = {"runner": "runner_iter", "max_iters": 2, "batch_size_train": 4, "batch_size_eval": 4, "num_workers": 0,
       "log_freq": 1, "tensorboard": False, "device": "cpu", "test_splits": ["test"]}
STAGES = {
    "stage 1": ({"arch": "blip2", "model_type": "mini"}, {"task": "image_text_pretrain", "k_test": 2},
                "image_retrieval"),
    "stage 2": ({"arch": "blip2_opt", "model_type": "mini"}, {"task": "captioning", "num_beams": 1, "max_len": 4},
                "image_caption"),
    "instruct": ({"arch": "blip2_t5_instruct", "model_type": "mini"},
                 {"task": "vqa", "prompt": "{}", "num_beams": 1, "max_len": 4}, "image_qa"),
}


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        for name, most in (("video", 5), ("sound", 3)):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{number}.npy", rng.normal(size=(1 + number % most, 6)).astype(np.float32))
        rows.append({"image": str(number), "caption": f"number {number}", "question": "which number?",
                     "answer": [str(number)], "question_id": number})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_on_features_of_two_streams(train_here: Train, sensors: Path, stage: str) -> None:
    model, run, builder = STAGES[stage]
    file = {"storage": str(sensors / "rows.json")}
    streams = {name: {"storage": str(sensors / name), "suffix": ".npy", "tokens": tokens}
               for name, tokens in (("video", 5), ("sound", 3))}
    content: dict[str, Any] = {
        "model": {**model, "load_pretrained": False, "vit_model": "features",
                  "vit_args": {"width": 6, "streams": {"video": 5, "sound": 3}}},
        "datasets": {"sensors": {"builder": builder, "build_info": {"annotations": {"train": file, "test": file},
                                                                    "images": {"storage": str(sensors)}},
                                 "arrays": streams}},
        "run": {**RUN, **run, "output_dir": str(sensors / "out")}}
    (sensors / "run.yaml").write_text(yaml.safe_dump(content))
    done = train_here(common=["run.seed=1"], cfg=str(sensors / "run.yaml"))
    assert done.returncode == 0, done.stderr
    rows = read_log(sensors / "out")
    assert [row["step"] for row in rows if "loss" in row and "split" not in row] == [1, 2]
    assert any(row.get("split") == "test" for row in rows)


def test_a_width_that_is_no_size_is_told_before_the_start(train_here: Train, sensors: Path) -> None:
    done = train_here("model.vit_model=features", "model.vit_args={wide: 6}", common=["run.seed=1"])
    assert done.returncode == 2
    assert "model.vit_args.wide: GivenFeatures has no such parameter; did you mean 'width'?" in done.stderr
