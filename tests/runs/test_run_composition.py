"""The configuration of an evaluation of a run: the run's own, another task or data set, or another recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis_lite.config.compose import compose, to_yaml
from lavis_lite.engine import open_run_folder
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.evaluation.resume import EvalCheckpoint, config_fingerprint
from lavis_lite.preflight import check
from lavis_lite.runs import RunCheckpoint, compose_evaluation, model_sections, resume_evaluation

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
CAPTIONS = PROJECTS / "blip2" / "stage2_opt.yaml"
QUESTIONS = PROJECTS / "instructblip" / "mini_opt.yaml"


def run_of(folder: Path, recipe: Path, *options: str) -> RunCheckpoint:
    """What a training of a recipe leaves, as far as composing looks at it."""
    run_dir = folder / "output" / "20260101-000000"
    checkpoint = run_dir / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(compose(recipe, options)))
    return RunCheckpoint(run_dir, checkpoint, "the last")


def test_an_evaluation_has_the_runs_configuration_and_its_weights(tmp_path: Path) -> None:
    chosen = run_of(tmp_path, QUESTIONS, "model.num_query_token=8", "run.fsdp=llm", "run.max_iters=7")
    composition = compose_evaluation(chosen, ["run.test_splits=[ood]"])
    model, run = composition.config.model, composition.config.run
    assert check(composition) == [] and run.evaluate and run.fsdp == "none" and run.test_splits == ["ood"]
    assert (model.get("num_query_token"), run.max_iters, run.task) == (8, 7, "vqa")
    assert model.load_pretrained and model.pretrained == str(chosen.folder.absolute()) and not model.load_finetuned
    assert model["pretrained_stage1"] is None and run.output_dir == str(chosen.run_dir / "evaluations")
    assert composition.where("model.pretrained") == "--run"
    elsewhere = compose_evaluation(chosen, [f"run.output_dir={tmp_path / 'elsewhere'}"])
    assert elsewhere.config.run.output_dir == str(tmp_path / "elsewhere")


def test_options_may_choose_another_task_and_other_data(tmp_path: Path) -> None:
    chosen = run_of(tmp_path, CAPTIONS)
    other = compose(chosen.run_dir / "config.yaml", ["run.task=vqa"])
    assert any("run.caption_metrics" in note and "sets run.task to vqa" in note for note in other.config.notes)
    composition = compose_evaluation(chosen, ["run.task=vqa", "datasets.mini_world_caption=null",
                                              "datasets.mini_world_vqa={}", "run.prompt=question: {} short answer:"])
    assert check(composition) == [] and list(composition.config.datasets) == ["mini_world_vqa"]
    assert composition.config.run.task == "vqa" and composition.config.model.arch == "blip2_opt"
    unknown = compose_evaluation(chosen, ["run.task=vqqa"])
    assert any("vqqa" in told for told in unknown.errors)


def test_a_recipe_brings_data_and_task_and_the_run_its_model(tmp_path: Path) -> None:
    chosen = run_of(tmp_path, CAPTIONS, "model.num_query_token=8", "imports=[lavis_lite.errors]")
    own = tmp_path / "other.yaml"
    own.write_text(f"base: {PROJECTS}/blip2/eval/mini_vqa_opt.yaml\nimports: [lavis_lite.io.atomic]\n")
    composition = compose_evaluation(chosen, ["run.test_splits=[ood]"], str(own))
    config = composition.config
    assert check(composition) == [] and config.imports == ["lavis_lite.errors", "lavis_lite.io.atomic"]
    assert config.run.task == "vqa" and "mini_world_vqa" in config.datasets and config.run.test_splits == ["ood"]
    assert (config.model.model_type, config.model["num_query_token"]) == ("mini", 8)
    assert config.model.pretrained == str(chosen.folder) and config.run.output_dir.endswith("evaluations")


@pytest.mark.parametrize("key", ["pretrained", "load_finetuned", "pretrained_stage1"])
def test_options_that_name_other_weights_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"--options model.{key}: --run takes its weights from .*leave one out"):
        compose_evaluation(run_of(tmp_path, CAPTIONS), [f"model.{key}=true"])


def test_to_resume_is_to_evaluate_that_checkpoint_and_a_training_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    training = compose(CAPTIONS, [f"run.output_dir={tmp_path}"])
    assert resume_evaluation(training, "auto", said.append) is training
    nothing = compose(CAPTIONS, [f"run.output_dir={tmp_path}", "run.evaluate=true"])
    assert resume_evaluation(nothing, None, said.append) is nothing and said == []
    with pytest.raises(CheckpointError, match=f"no good checkpoint under {tmp_path} to evaluate. Train first"):
        resume_evaluation(nothing, "auto", said.append)


@pytest.mark.parametrize("size", [64, 96])
def test_processors_are_those_of_the_runs_data(tmp_path: Path, size: int) -> None:
    own = f"datasets.mini_world_caption.vis_processor.eval.image_size={size}"
    model, preprocess = model_sections(run_of(tmp_path, CAPTIONS, own))
    assert preprocess.vis_processor.eval == {"name": "blip_image_eval", "image_size": size}
    assert model.pretrained is not None and model.pretrained.endswith("step_00000002")


def test_processors_of_data_sets_that_differ_are_those_of_the_model(tmp_path: Path) -> None:
    other = "datasets.mini_world_vqa.vis_processor.eval.image_size=96"
    preprocess = model_sections(run_of(tmp_path, CAPTIONS, other))[1]
    assert (preprocess.vis_processor.eval or {})["image_size"] == 64


def test_an_evaluation_that_was_stopped_goes_on_in_its_folder(tmp_path: Path, capsys: Any) -> None:
    chosen = run_of(tmp_path, CAPTIONS)
    composition = compose_evaluation(chosen)
    first = open_run_folder(composition, None)
    assert first.parent == chosen.run_dir / "evaluations"
    name = next(iter(composition.config.datasets))
    parts = {**config_fingerprint(composition.config, name), "data set": name, "step": 2, "split": "test"}
    journal = EvalCheckpoint(first, f"test_{name}_step2", parts, True, 0)
    journal.append({"key": "k", "value": 1})
    journal.close()
    assert open_run_folder(compose_evaluation(chosen), None) == first
    other = RunCheckpoint(chosen.run_dir, chosen.folder.with_name("step_00000004"), "the last")
    assert open_run_folder(compose_evaluation(other), None) != first
    assert "model.pretrained was" in capsys.readouterr().out
