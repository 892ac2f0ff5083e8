"""Which run and which checkpoint a user means, and what is said if there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lavis_lite.checkpoints.manifest import checkpoint_of_run
from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.runs import RunCheckpoint, find_checkpoint, hint_at_run
from lavis_lite.tracking.tracker import Tracker
from tests.helpers.toy import Toy

RUN = {"max_iters": 4, "save_every": 1, "keep_checkpoints": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, each with a checkpoint; no validation."""
    folder = tmp_path_factory.mktemp("output") / "toy" / "20260101-000000"
    Toy(folder, RUN).build(Tracker()).train()
    (folder / "config.yaml").write_text("model: {arch: blip2}\n")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, as if the run had been moved."""
    return Path(shutil.copytree(trained, tmp_path / "moved" / "20260101-000000"))


def choose_best(run: Path, step: int) -> None:
    """Note a best step as the runner does."""
    best = {"checkpoint": f"step_{step:08d}", "step": step, "metric": 0.25, "split": "val"}
    (run / "checkpoints" / "best.json").write_text(json.dumps(best))


@pytest.mark.parametrize(("named", "step", "reason"), [
    (None, 2, "the best by val agg_metrics 0.25"), ("best", 2, "the best by val agg_metrics 0.25"),
    ("last", 4, "the last"), ("step_3", 3, "the one that was named"),
    ("step_00000003", 3, "the one that was named"), ("1", 1, "the one that was named")])
def test_a_checkpoint_by_its_name(run: Path, named: str | None, step: int, reason: str) -> None:
    choose_best(run, 2)
    found = find_checkpoint(run, named)
    assert found == RunCheckpoint(run, run / "checkpoints" / f"step_{step:08d}", reason)


def test_where_no_best_one_is_there_the_last_is_taken_and_that_is_said(run: Path) -> None:
    last = run / "checkpoints" / "step_00000004"
    assert find_checkpoint(run) == RunCheckpoint(run, last, "the last; no validation chose a best one")
    choose_best(run, 2)
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    assert find_checkpoint(run, "best").reason == "the last; the best one, step_00000002, is not there any more"
    (run / "checkpoints" / "best.json").write_text("{")
    assert find_checkpoint(run).folder == last and "best.json cannot be read" in find_checkpoint(run).reason


def test_a_run_by_other_folders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = run / "checkpoints" / "step_00000002"
    assert find_checkpoint(step) == RunCheckpoint(run, step, "the one that was named")
    assert find_checkpoint(run / "checkpoints", "step_2").folder == step
    assert find_checkpoint(run.parent.parent, "step_2").folder == step
    monkeypatch.chdir(run)
    assert find_checkpoint(".", "step_2").folder == Path("checkpoints/step_00000002")
    monkeypatch.chdir(run / "checkpoints")
    assert find_checkpoint(".", "step_2") == RunCheckpoint(run, step, "the one that was named")
    monkeypatch.chdir(step)
    assert find_checkpoint(".").run_dir == run and find_checkpoint("../..", "step_2").folder.resolve() == step
    alone = Path(shutil.copytree(step, run.parent / "somewhere"))
    assert find_checkpoint(alone).run_dir == alone and find_checkpoint(alone).evaluations() is None
    with pytest.raises(ConfigError, match="is a checkpoint itself: leave --checkpoint last out"):
        find_checkpoint(step, "last")


def test_a_folder_above_runs_stands_for_the_one_that_saved_last(run: Path) -> None:
    Toy(run.parent / "0-first-by-name", {**RUN, "max_iters": 1}).build(Tracker()).train()
    (run.parent / "evaluation" / "results").mkdir(parents=True)
    found = find_checkpoint(run.parent.parent)
    assert found.run_dir.name == "0-first-by-name" and "of the 2 runs in " in found.describe()


def test_weights_are_taken_from_a_folder_above_runs_too(run: Path) -> None:
    choose_best(run, 2)
    best = run / "checkpoints" / "step_00000002"
    for folder in (run, run.parent, run.parent.parent):
        assert checkpoint_of_run(folder) == best == find_checkpoint(folder).folder
    shutil.rmtree(best)
    assert checkpoint_of_run(run.parent) == run / "checkpoints" / "step_00000004"
    (run / "checkpoints" / "best.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read: .*Name a checkpoint folder"):
        checkpoint_of_run(run)
    for other in (best.with_name("step_00000004"), run / "config.yaml", run / "nothing", run / "checkpoints" / "x.pth"):
        assert checkpoint_of_run(other) == other


def test_beside_a_damaged_run_the_others_are_named(run: Path) -> None:
    Toy(run.parent / "other", {**RUN, "max_iters": 1}).build(Tracker()).train()
    (run.parent / "other" / "checkpoints" / "step_00000001" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"is damaged: .*Other runs, to be named with --run: {run}"):
        find_checkpoint(run.parent)


def test_what_is_no_checkpoint_is_refused_with_those_there_are(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint 'step_7'; it has step_1, step_2, step_3, step_4, and `b"):
        find_checkpoint(run, "step_7")
    with pytest.raises(CheckpointError, match="no checkpoint 'newest'"):
        find_checkpoint(run, "newest")
    with pytest.raises(CheckpointError, match="there is no run folder .*did you mean '20260101-000000'"):
        find_checkpoint(run.with_name("20260101-00000"))
    with pytest.raises(CheckpointError, match="is a file, and a run is a folder.*model.pretrained=FILE"):
        find_checkpoint(run / "config.yaml")
    evaluation = run / "evaluations" / "20260102-000000"
    evaluation.mkdir(parents=True)
    (evaluation / "config.yaml").write_text("run: {evaluate: true}\n")
    with pytest.raises(CheckpointError, match="is the folder of an evaluation; name its run, .*20260101-000000"):
        find_checkpoint(evaluation)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint: nothing was saved there"):
        find_checkpoint(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run folder nor a folder above runs"):
        find_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_and_the_others_are_named(run: Path, file: str) -> None:
    path = run / "checkpoints" / "step_00000004" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"step_00000004 .* is damaged: .*{file}.* step_1, step_2, step_3;"):
        find_checkpoint(run)
    assert find_checkpoint(run, "step_3").folder.name == "step_00000003"


def test_a_run_without_its_configuration_names_the_way_on(run: Path) -> None:
    found = find_checkpoint(run)
    (run / "config.yaml").unlink()
    assert found.config_layer().name == str(found.folder / "config.yaml")
    (found.folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has no config.yaml.*--cfg-path RECIPE.yaml --resume .*step_00000004"):
        found.config_layer()


def test_the_configuration_of_a_run_points_to_the_run(run: Path) -> None:
    assert f"use --run {run}" in hint_at_run(str(run / "config.yaml"))
    assert hint_at_run("projects/blip2/stage1.yaml") == ""
