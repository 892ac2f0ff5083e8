"""LAVIS' run files, rebuilt from the inventory of their keys, run to their score on files in LAVIS' own layouts.

What differs from the file: the size of the model and its pictures, where pictures are, the device, the number of steps.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis_lite.cli.main import run_command
from tests.config.test_lavis_runs import TRUE_NOTES, nested
from tests.end_to_end.conftest import environment
from tests.end_to_end.lavis_files import COUNTS, folder_of, write_lavis_files

Flat = dict[str, Any]
NO_BF16 = "run.amp=true has no effect here: this CPU has no instructions"
SHORTENED = r"run.max_epoch=\d+ has no effect: the run ends after run.max_iters=2"  # which is of TWO_STEPS
QUICK = ["blip2/eval/caption_nocaps_out_domain_flant5xl_eval.yaml", "blip2/eval/vqav2_zeroshot_opt_eval.yaml",
         "blip2/eval/ret_flickr_eval.yaml", "blip2/train/pretrain_stage2.yaml",
         "instructblip/caption_msvd_flant5xl_eval.yaml", "instructblip/classification_snlive_vicuna7b_test.yaml",
         "instructblip/qa_okvqa_vicuna13b_eval.yaml"]
"""one of each task, of each layout and of each arch"""
SMALL = ["model.model_type=mini", "run.device=cpu", "run.num_workers=0", "run.tensorboard=false"]
TWO_STEPS = ["run.max_iters=2", "run.batch_size_train=4", "run.log_freq=1", "run.warmup_steps=1"]
COUNTED = {"nocaps": 2, "msvd_caption": 2}
"""data set -> images that `run.img_ids` names"""
SCORES = {"captioning": ("CIDEr", 0.3), "vqa": ("accuracy", 0.3), "gqa": ("accuracy", 0.3),
          "retrieval": ("txt_r1", 0.75), "multimodal_classification": ("accuracy", 0.0)}
"""task -> (a score, what the packaged weights reach at least)"""
UNTRAINED = "vicuna"
"""the packaged weights of these archs learned questions, and cannot write captions"""


@pytest.fixture(scope="session")
def lavis_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LAVIS' cache folder."""
    folder = tmp_path_factory.mktemp("lavis_cache")
    write_lavis_files(folder)
    return folder


def changes(flat: Flat, cache: Path) -> list[str]:
    """The options of a run file."""
    options = [*SMALL, *(() if flat["run.evaluate"] else TWO_STEPS)]
    for name in sorted({key.split(".")[1] for key in flat if key.startswith("datasets.")}):
        options += [f"datasets.{name}.vis_processor.{mode}.image_size=64" for mode in ("train", "eval")]
    for key, value in flat.items():
        if key.endswith((".images.storage", ".videos.storage")):
            options.append(f"{key}={cache / folder_of(key.split('.')[1])}")
        elif key == "run.annotation_file":
            known = "nocaps_gt/val.json" if "nocaps" in value else "/".join(value.split("/")[-2:])
            options.append(f"{key}={cache / known}")
        elif key == "model.pretrained":
            options.append(f"{key}=mini/stage1")
    return options


def results(work: Path, flat: Flat) -> dict[str, dict[str, float]]:
    """Split -> scores, as the run wrote them below its output_dir."""
    (run,) = (work / flat["run.output_dir"]).iterdir()
    found = [json.loads(path.read_text()) for path in run.glob("results/*_step?.json")]
    return {result["split"]: result["metrics"] for result in found}


def check_scores(flat: Flat, scores: dict[str, float]) -> None:
    """The score of the task is there, and not below what the packaged weights reach."""
    name, least = SCORES[flat["run.task"]]
    assert math.isfinite(scores["agg_metrics"]), scores
    if flat["run.task"] == "captioning" and UNTRAINED in flat["model.arch"]:
        least = 0.0
    assert scores[name] >= least, scores


def predicted(work: Path, flat: Flat, split: str) -> int:
    """Rows of a split's predictions; retrieval has none."""
    paths = [*(work / flat["run.output_dir"]).glob(f"*/results/{split}_step?_predictions.json")]
    return len(json.loads(paths[0].read_text())) if paths else 0


def run(name: str, flat: Flat, cache: Path, work: Path) -> int:
    """Run a file as a user does; its exit code."""
    path = work / Path(name).name
    path.write_text(yaml.safe_dump(nested(flat)))
    script = "evaluate" if flat["run.evaluate"] else "train"
    return run_command(script, ["--cfg-path", str(path), "--options", *changes(flat, cache)])


def all_files() -> list[Any]:
    """Names of all run files; those that are not quick are marked `long`."""
    from tests.conftest import find_shared

    path = find_shared() / "facts" / "lavis_yaml_inventory.json"
    names = list(json.loads(path.read_text())["runs"]) if path.is_file() else QUICK
    kept = [name for name in names if "modelnet40" not in name]  # point clouds, refused by name
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in kept]


@pytest.mark.parametrize("name", all_files())
def test_a_run_file_of_lavis_reaches_its_score(name: str, shared_dir: Path, lavis_cache: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    flat = json.loads((shared_dir / "facts/lavis_yaml_inventory.json").read_text())["runs"][name]
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key not in environment(lavis_cache)]:
        monkeypatch.delenv(key)
    for key, value in environment(lavis_cache).items():
        monkeypatch.setenv(key, value)
    code = run(name, flat, lavis_cache, tmp_path)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    notes = [line for line in (printed.out + printed.err).splitlines() if line.startswith("note: ")]
    true = re.compile("|".join((*TRUE_NOTES, NO_BF16, SHORTENED)))
    assert [note for note in notes if not true.search(note)] == []
    splits = [*(flat.get("run.valid_splits") or ()), *(flat.get("run.test_splits") or ())]
    found = results(tmp_path, flat)
    assert sorted(found) == sorted(set(splits))
    for split, scores in found.items():
        check_scores(flat, scores)
        (dataset,) = {key.split(".")[1] for key in flat if key.startswith("datasets.")}
        if flat["run.task"] == "captioning":
            assert predicted(tmp_path, flat, split) == COUNTED.get(dataset, COUNTS["val"])
    if not splits:
        assert "step 2/2  loss " in printed.out
