"""LLaVA, MiniGPT-4 and mPLUG-Owl are recipes without code: all compose, and the minis train what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.compose import compose
from lavis_lite.preflight.run import check
from tests.end_to_end.conftest import ROOT

NAMES = ("llava", "minigpt4", "mplug_owl")
RECIPES = sorted(path for name in NAMES for path in (ROOT / "projects" / name).glob("*.yaml"))
TRAINED = {"llava/mini_stage1": {"connector"}, "llava/mini_stage2": {"connector", "language_model"},
           "minigpt4/mini": {"connector"}, "mplug_owl/mini_stage1": {"connector"},
           "mplug_owl/mini_stage2": {"language_model"}}


def test_there_is_no_code() -> None:
    assert len(RECIPES) == 13
    assert [path for name in NAMES for path in (ROOT / "projects" / name).rglob("*.py")] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_composes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert check(compose(path)) == []


@pytest.mark.parametrize("name", TRAINED)
def test_a_mini_trains_the_parts_that_the_paper_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    section = compose(ROOT / f"projects/{name}.yaml").config.model
    model = build_model(section)
    assert {part for part, (trains, _) in model.count_parameters().items() if trains} == TRAINED[name]
    if name == "minigpt4/mini":
        assert {key for key, value in model.named_parameters() if value.requires_grad} == {
            "connector.language_projection.weight", "connector.language_projection.bias"}
