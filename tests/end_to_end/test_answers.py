"""Question answering and captioning as a user runs them: a tiny stage-2 model trains, answers, and is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.conftest import Train, read_log
from tests.models.language.tiny import IDS, SIZES, byte_tokenizer
from tests.models.test_blip2_llm import SIZES_OF_QFORMER

WORLD = {"train": 24, "val": 8, "test": 8, "ood": 4, "seed": 3}
RUN = {"runner": "runner_iter", "max_iters": 2, "batch_size_train": 4, "batch_size_eval": 8, "num_workers": 0,
       "log_freq": 1, "tensorboard": False, "num_beams": 2, "max_len": 5, "save_last": True, "device": "cpu"}
MODEL = {**SIZES_OF_QFORMER, "arch": "blip2_opt", "model_type": "pretrain_opt2.7b", "image_size": 64,
         "llm_args": {**IDS, **SIZES["opt"]}, "max_txt_len": 200, "qformer_max_positions": 256,
         "pretrained": None}


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """(data set, run keys) -> the YAML of a run."""
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    size = {"name": "blip_image_eval", "image_size": 64}
    model = {**MODEL, "llm_tokenizer": str(tmp_path / "bytes")}

    def write(dataset: str, **run: Any) -> str:
        content = {"model": model, "preprocess": {"vis_processor": {"train": size, "eval": size}},
                   "datasets": {dataset: {"prepare_args": WORLD}},
                   "run": {**RUN, "output_dir": str(tmp_path / "out"), **run}}
        path = tmp_path / f"{dataset}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def results(tmp_path: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, predictions) of the newest run."""
    folder = max((tmp_path / "out").iterdir(), key=lambda path: path.stat().st_mtime) / "results"
    (metrics,) = [path for path in folder.glob("*.json") if path.stem.split("_")[-1].startswith("step")]
    (samples,) = folder.glob("*_samples.json")
    assert (folder / "report.html").read_text().count('"i":') == len(json.loads(samples.read_text())["samples"])
    (predictions,) = folder.glob("*_predictions.json")
    return json.loads(metrics.read_text())["metrics"], json.loads(predictions.read_text())


def test_questions_are_learned_answered_and_scored(train_here: Train, recipe: Any, tmp_path: Path, cache: Path) -> None:
    prompt = {"task": "vqa", "prompt": "Question: {} Short answer:", "test_splits": ["test"]}
    done = train_here(common=["run.seed=42"], cfg=recipe("mini_world_vqa", **prompt))
    assert done.returncode == 0, done.stderr
    assert "VQA accuracy" in done.stdout and "majority" in done.stdout
    assert [row["step"] for row in read_log(tmp_path / "out") if "split" not in row] == [1, 2]
    scores, predictions = results(tmp_path)
    (file,) = (cache / "mini_world").glob("*seed=3*train=24*/annotations/questions_test.json")
    asked = json.loads(file.read_text())["questions"]
    assert [row["question_id"] for row in predictions] == sorted(row["question_id"] for row in asked)
    assert all(set(row) == {"question_id", "answer"} for row in predictions)
    assert {"accuracy", "accuracy_question_color", "accuracy_answer_yes_no", "majority", "agg_metrics"} <= set(scores)
    (checkpoint,) = (tmp_path / "out").glob("*/checkpoints/step_00000002")
    options = ["model.load_pretrained=true", f"model.pretrained={checkpoint}", f"run.output_dir={tmp_path / 'again'}"]
    again = train_here(*options, common=["run.seed=42"], cfg=recipe("mini_world_vqa", **prompt), script="evaluate.py")
    assert again.returncode == 0, again.stderr
    (second,) = (tmp_path / "again").glob("*/results/*_predictions.json")
    assert json.loads(second.read_text()) == predictions


def test_captions_are_written_after_an_instruction(train_here: Train, recipe: Any, tmp_path: Path) -> None:
    run = {"task": "captioning", "caption_metrics": ["scene"], "test_splits": ["val"], "control": "wrong_image"}
    done = train_here(common=["run.seed=42"], cfg=recipe("mini_world_caption_instruct", **run))
    assert done.returncode == 0, done.stderr
    assert "attribute F1" in done.stdout and "other samples' images" in done.stdout
    scores, predictions = results(tmp_path)
    assert {"attribute_f1", "exact", "agg_metrics"} <= set(scores)
    assert len(predictions) == 8 and all(set(row) == {"image_id", "caption"} for row in predictions)


def test_questions_that_the_language_model_has_no_room_for_stop_a_training_before_it_begins(
        train_here: Train, recipe: Any, tmp_path: Path) -> None:
    long = {"task": "vqa", "prompt": "look closely " * 25 + "{}", "test_splits": ["test"]}
    done = train_here(common=["run.seed=42"], cfg=recipe("mini_world_vqa", **long))
    assert done.returncode == 2 and "too long for the language model, the first at " in done.stderr
    assert "set run.on_bad_sample=skip" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*/log.jsonl")), "no step was made"
