"""Ablations as YAML files: errors that teach, variants, and the package's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.errors import ConfigError, ErrorList
from lavis_lite.io import atomic
from lavis_lite.lab import plan as planning
from lavis_lite.lab.ablation import Ablation, Step, as_option, find, names
from lavis_lite.lab.plan import plan, unique

OWN = """
title: Two learning rates
steps:
  train: {recipe: projects/blip2/stage1.yaml, options: {run.max_iters: 2, run.warmup_steps: 0}}
  scores: {of: train, recipe: projects/blip2/eval/mini_retrieval.yaml}
variants:
  slow: {}
  fast: {train: {run.init_lr: 0.01}}
  without scores: {scores: null}
scores: {text R@1: scores.test.txt_r1}
expected: [{better: fast, than: slow, score: text R@1}]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_variants_change_and_drop_steps(tmp_path: Path) -> None:
    found = find(write(tmp_path, OWN))
    assert found.name == "own" and found.seeds == [1, 2, 3]
    assert found.steps_of("fast")["train"].options == {"run.max_iters": 2, "run.warmup_steps": 0, "run.init_lr": 0.01}
    assert list(found.steps_of("without scores")) == ["train"]
    assert list(found.steps_of("slow")) == ["train", "scores"]


def test_an_unknown_name_has_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"no ablation 'itgg'; did you mean 'itg'"):
        find("itgg")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("better: fast", "better: fst", r"expected.0: no 'fst'; did you mean 'fast'"),
    ("of: train", "of: trains", r"steps.scores.of: no 'trains'; did you mean 'train'"),
    ("fast: {train:", "fast: {tran:", r"variants.fast: no 'tran'; did you mean 'train'"),
    ("scores.test.txt_r1", "scores.txt_r1", r"'scores.txt_r1' must be step.split.metric"),
    ("title: Two learning rates", "titel: x", r"unknown key titel; did you mean 'title'"),
    ("title: Two learning rates", "seeds: []", r"title: is missing or empty(.|\n)*seeds: is missing or empty"),
])
def test_every_error_names_key_and_choice(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    with pytest.raises(ErrorList, match=message):
        find(write(tmp_path, OWN.replace(old, new)))


def test_a_step_stands_for_its_run_folder() -> None:
    assert as_option("model.pretrained", "{stage1}", {"stage1": Path("/runs/a")}) == "model.pretrained=/runs/a"
    assert as_option("a.storage", "{stage1}/x.jsonl", {"stage1": Path("/runs/a")}) == "a.storage=/runs/a/x.jsonl"
    assert as_option("run.sampling", None, {}) == "run.sampling=null"
    assert as_option("run.prompt", "question: {} answer:", {}) == "run.prompt=question: {} answer:"
    with pytest.raises(ConfigError, match=r"\{stage2\}: no earlier step 'stage2'; did you mean 'stage1'"):
        as_option("model.pretrained", "{stage2}", {"stage1": Path("/runs/a")})


def test_a_wrong_option_is_reported_before_any_run(tmp_path: Path) -> None:
    own = find(write(tmp_path, OWN.replace("run.init_lr", "run.init_rl")))
    with pytest.raises(ErrorList, match=r"unknown key run.init_rl; did you mean 'init_lr'"):
        plan(own, tmp_path / "out", [1])
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_has_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"blip2/stag1.yaml: there is neither(.|\n)*did you mean 'blip2/stage1'"):
        plan(find(write(tmp_path, OWN.replace("blip2/stage1", "blip2/stag1"))), tmp_path, [1])


def test_equal_steps_are_one_run_and_others_are_not(tmp_path: Path) -> None:
    cells = plan(find(write(tmp_path, OWN)), tmp_path / "out", [1, 2])
    folders = {(variant, seed, step): job.folder for (variant, seed), jobs in cells.items()
               for step, job in jobs.items()}
    assert folders["slow", 1, "train"] == folders["without scores", 1, "train"]
    assert len({folders["slow", 1, "train"], folders["fast", 1, "train"], folders["slow", 2, "train"]}) == 3
    assert folders["slow", 1, "scores"] != folders["fast", 1, "scores"]
    jobs = unique(cells)
    assert len(jobs) == 8 and [job.depth for job in jobs] == [0] * 4 + [1] * 4
    elsewhere = plan(find(write(tmp_path, OWN)), tmp_path / "moved", [1])
    assert elsewhere["slow", 1]["train"].folder.name == folders["slow", 1, "train"].name


def test_other_packaged_weights_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = find(write(tmp_path, OWN))
    before = plan(own, tmp_path, [1])["slow", 1]["train"].folder
    assert plan(own, tmp_path, [1])["slow", 1]["train"].folder == before
    monkeypatch.setattr(atomic, "file_sha256", lambda path: f"another {path.name}")
    assert plan(own, tmp_path, [1])["slow", 1]["train"].folder != before


def test_checkpoints_that_a_training_does_not_keep_are_an_error(tmp_path: Path) -> None:
    text = OWN.replace("{of: train,", "{of: train, every: 1,")
    with pytest.raises(ErrorList, match="every: 1 evaluates 2 checkpoints of train; set there run.save_every: 1"):
        plan(find(write(tmp_path, text)), tmp_path, [1])
    kept = text.replace("run.warmup_steps: 0", "run.warmup_steps: 0, run.save_every: 1")
    assert plan(find(write(tmp_path, kept)), tmp_path, [1])["slow", 1]["scores"].every == 1


def test_a_short_try_sets_the_steps_of_every_training(tmp_path: Path) -> None:
    job = plan(find(write(tmp_path, OWN)), tmp_path, [1], iterations=30)["slow", 1]["train"]
    run = job.composition().config.run
    assert (run.max_iters, run.warmup_steps, run.seed, run.output_dir) == (30, 3, 1, str(job.folder))


@pytest.mark.parametrize("name", names())
def test_the_ablations_of_the_package_compose(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = find(name)
    assert own.paper and own.expected and len(own.seeds) >= 3
    monkeypatch.setattr(planning, "missing", lambda config: [])  # nothing is generated here
    for variant, jobs in {variant: jobs for (variant, _), jobs in plan(own, tmp_path, own.seeds[:1]).items()}.items():
        assert jobs, variant
        assert {score.split(".")[0] for score in own.scores.values()} <= set(jobs), variant


def test_without_recipe_is_an_error() -> None:
    from lavis_lite.lab.ablation import errors

    one = Ablation("x", "x", steps={"a": Step()}, variants={"b": {}}, scores={"s": "a.test.loss"})
    assert errors(one) == [("steps.a.recipe", "is missing.")]
