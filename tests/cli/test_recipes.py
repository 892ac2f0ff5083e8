"""Recipes by name: from any folder, listed with their costs, and copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.cli.main import main
from lavis_lite.config.compose import compose
from lavis_lite.config.recipes import Recipe, find_recipe, recipes
from lavis_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of these tests has no `projects/`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "name"), [
    ("stage1", "blip2/stage1"), ("blip2/stage1", "blip2/stage1"), ("projects/blip2/stage1.yaml", "blip2/stage1"),
    ("stage2_opt2.7b", "blip2/stage2_opt2.7b"), ("vicuna7b", "instructblip/vicuna7b"),
    ("mini_vqa_opt", "blip2/eval/mini_vqa_opt"),
    ("stage1.yaml", None), ("other/stage1", None), ("stage9", None)])
def test_names_of_recipes(text: str, name: str | None) -> None:
    found = find_recipe(text)
    assert (found and found.name) == name


def test_a_name_of_several_projects_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mini' names 3 recipes: flamingo/mini, frozen/mini, minigpt4/mini"):
        find_recipe("mini")


def test_every_training_says_what_it_does_and_costs() -> None:
    trainings = [recipe for recipe in recipes() if "/eval/" not in recipe.name]
    assert len(trainings) > 40 and all(10 < len(recipe.what()) < 300 for recipe in trainings)
    assert [recipe.name for recipe in trainings
            if not recipe.cost() and "Not run on the real thing" not in " ".join(recipe.header())] == []
    assert Recipe("blip2/stage1_vitg").cost() == "the paper: under 6 days on 16 A100-40G"
    assert Recipe("blip2/vqa_opt2.7b").cost() == "16 GPUs; time not stated"


@pytest.mark.parametrize("words", [["stage1"], ["--cfg-path", "stage1"],
                                   ["--options", "run.seed=3", "--cfg-path", "stage1"]])
def test_the_configuration_may_be_a_positional(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words, "--print-config"]) == 0
    assert "run.max_iters: 400" in capsys.readouterr().out


def test_one_configuration_only(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["stage1", "--cfg-path", "x.yaml"], "not allowed with"),
                           ([], "--cfg-path RECIPE is required")):
        assert main(["train", *words]) == 2
        assert message in capsys.readouterr().err


def test_an_unknown_name_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "stage2_optt"]) == 2
    assert "neither such a file nor such a recipe; did you mean 'stage2_opt'" in capsys.readouterr().err


def test_a_copy_composes_to_the_same_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if the recipe's `base:` is in a folder beside it."""
    for name in ("blip2/eval/mini_pretrain", "instructblip/flant5xl"):
        assert main(["recipes", "--copy", name]) == 0
        copy = elsewhere / f"{name.rpartition('/')[2]}.yaml"
        original = compose(Recipe(name).path)
        assert (again := compose(copy)).errors == [] and again.tree == original.tree
        assert f" {copy.name}" in capsys.readouterr().out
        assert main(["recipes", "--copy", name]) == 2 and "exists" in capsys.readouterr().err


def test_a_file_here_comes_before_the_recipe(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "projects/blip2").mkdir(parents=True)
    (elsewhere / "projects/blip2/stage1.yaml").write_text("run: {max_iters: 7}\n")
    main(["train", "blip2/stage1", "--print-config"])
    assert "run.max_iters: 7 " in capsys.readouterr().out


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "blip2/stage1*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2::2]] == ["blip2/stage1", "blip2/stage1_custom", "blip2/stage1_vitg",
                                                         "blip2/stage1_vitl"]
    assert main(["recipes", "--eval", "instructblip/*"]) == 0 and "gqa_vicuna7b" in capsys.readouterr().out
    assert main(["recipes", "blop2/*"]) == 2 and "no recipe matches" in capsys.readouterr().err
