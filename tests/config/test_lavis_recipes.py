"""LAVIS' commands of BLIP-2: its recipe paths and its scripts run the recipe of the same experiment here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lavis_lite.cli.main import main
from lavis_lite.config.compose import compose
from lavis_lite.config.recipes import counterpart
from tests.test_run_scripts import REPOSITORY, bash, echo_venv  # noqa: F401  (a fixture)

XL, CAPTION, PRETRAIN = "blip2_t5/pretrain_flant5xl", "blip2_opt/caption_coco_opt", "blip2_opt/pretrain_opt2.7b"
FILES = {
    "train/pretrain_stage1": "blip2/pretrain image_text_pretrain coco_caption",
    "train/pretrain_stage2": f"{PRETRAIN} captioning coco_caption",  # the same loss; captions are scored too
    "train/caption_coco_ft": f"{CAPTION}2.7b captioning coco_caption",
    "train/retrieval_coco_ft": "blip2/coco retrieval coco_retrieval",
    "eval/caption_coco_flant5xl_eval": "blip2_t5/caption_coco_flant5xl captioning coco_caption",
    "eval/caption_coco_opt2.7b_eval": f"{CAPTION}2.7b captioning coco_caption",
    "eval/caption_coco_opt6.7b_eval": f"{CAPTION}6.7b captioning coco_caption",
    "eval/caption_nocaps_out_domain_flant5xl_eval": f"{XL} captioning nocaps",
    "eval/caption_nocaps_out_domain_flant5xxl_eval": "blip2_t5/pretrain_flant5xxl captioning nocaps",
    "eval/gqa_zeroshot_flant5xl_eval": f"{XL} gqa gqa",
    "eval/okvqa_zeroshot_flant5xl_eval": f"{XL} vqa ok_vqa",
    "eval/vqav2_zeroshot_flant5xl_eval": f"{XL} vqa coco_vqa",
    "eval/vqav2_zeroshot_opt_eval": f"{PRETRAIN} vqa coco_vqa",
    "eval/ret_coco_eval": "blip2/coco retrieval coco_retrieval",
    "eval/ret_flickr_eval": "blip2/coco retrieval flickr30k",
}
"""LAVIS' files of BLIP-2 -> the model, task and data set that they run (of several data sets, one)"""
SCRIPTS = {
    "eval/eval_cap_coco_flant5xl": "caption_coco_flant5xl_eval",
    "eval/eval_cap_coco_opt2.7b": "caption_coco_opt2.7b_eval",
    "eval/eval_cap_coco_opt6.7b": "caption_coco_opt6.7b_eval",
    "eval/eval_gqa_zeroshot_flant5xl": "gqa_zeroshot_flant5xl_eval",
    "eval/eval_okvqa_zeroshot_flant5xl": "okvqa_zeroshot_flant5xl_eval",
    "eval/eval_ret_coco": "ret_coco_eval",
    "eval/eval_ret_flickr": "ret_flickr_eval",
    "eval/validate_vqa_zeroshot_flant5xl": "vqav2_zeroshot_flant5xl_eval",
    "eval/validate_vqa_zeroshot_opt": "vqav2_zeroshot_opt_eval",
    "train/pretrain_stage1": "pretrain_stage1",
    "train/pretrain_stage2": "pretrain_stage2",
    "train/train_caption_coco": "caption_coco_ft",
    "train/train_retrieval_coco": "retrieval_coco_ft",
}
"""LAVIS' scripts of BLIP-2 -> the file of their folder that they run"""


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_path_of_lavis_is_the_same_experiment_here(name: str) -> None:
    found = counterpart(f"lavis/projects/blip2/{name}.yaml")
    assert found is not None
    composition = compose(REPOSITORY / found)
    config, (model, task, data) = composition.config, FILES[name].split()
    assert composition.errors == [] and f"{config.model.arch}/{config.model.model_type}" == model
    assert config.run.task == task and data in config.datasets
    assert config.run.evaluate == name.startswith("eval/")


@pytest.mark.parametrize("llm", ["flant5xl", "flant5xxl", "vicuna7b", "vicuna13b"])
@pytest.mark.parametrize("name", ["caption_nocaps_out_domain_{}_eval", "qa_msvd_{}_eval", "qa_msrvtt_{}_eval_test"])
def test_instructblips_of_which_there_is_a_recipe(name: str, llm: str) -> None:
    found = counterpart(f"/home/me/LAVIS/lavis/projects/instructblip/{name.format(llm)}.yaml")
    assert found is not None and compose(REPOSITORY / found).config.model.model_type == llm


def test_all_scripts_of_lavis_start_their_recipe(echo_venv: Path, tmp_path: Path) -> None:  # noqa: F811
    found = sorted((REPOSITORY / "run_scripts" / "blip2").rglob("*.sh"))
    assert [path.relative_to(REPOSITORY / "run_scripts/blip2").with_suffix("").as_posix() for path in found
            ] == sorted(SCRIPTS) and len(SCRIPTS) == 13
    for name, file in SCRIPTS.items():
        kind = name.partition("/")[0]
        result = bash(f"run_scripts/blip2/{name}.sh", "--options", "run.seed=1", cwd=tmp_path, PROCESSES="2",
                      LAVIS_LITE_VENV=str(echo_venv))
        program = "evaluate.py" if kind == "eval" else "train.py"
        assert result.stdout == (
            f"{REPOSITORY}: python -m torch.distributed.run --standalone --nproc-per-node 2 {program} --cfg-path "
            f"{counterpart(f'lavis/projects/blip2/{kind}/{file}.yaml')} --options run.seed=1\n")


def test_the_line_that_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = "lavis/projects/blip2/train/caption_coco_ft.yaml"
    assert main(["train", "--cfg-path", path, "--print-config"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"note: {path} is a recipe of LAVIS. projects/blip2/caption_coco_opt2.7b.yaml is")
    assert re.search(r"model_type: caption_coco_opt2\.7b", said.out)


def test_the_users_own_file_and_other_paths_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder `lavis` must not be found by later tests
    own = tmp_path / "lavis" / "projects" / "blip2" / "train" / "pretrain_stage1.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("run: {tsk: vqa}\n")
    assert main(["train", "--cfg-path", str(own.relative_to(tmp_path))]) == 2
    assert "is a recipe of LAVIS" not in (said := capsys.readouterr().err) and "run.tsk" in said
    assert counterpart("lavis/projects/blip2/eval/no_such_eval.yaml") is None


@pytest.mark.parametrize(("path", "words"), [
    ("lavis/projects/albef/eval/vqa_test.yaml", "for models that are not here"),
    ("lavis/projects/instructblip/caption_coco_flant5xl_eval_test.yaml", "LAVIS' own file runs unchanged"),
    ("projects/no_such.yaml", "")])
def test_recipes_without_a_counterpart_are_refused_with_a_reason(path: str, words: str, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--cfg-path", path]) == 2
    said = capsys.readouterr().err
    assert "no such file" in said and (f"note: {path} is a recipe of LAVIS" in said) == bool(words) and words in said
