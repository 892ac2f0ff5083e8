"""A small ablation from its YAML to its report: runs are kept, continued, and evaluated at several checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lavis_lite.cli.main import run_command
from lavis_lite.lab import execute
from lavis_lite.lab.findings import read_rows

WORLD = "{train: 24, val: 0, test: 8, ood: 0, seed: 3}"
OWN = f"""
title: With and without ITG
paper: none
steps:
  stage1:
    recipe: projects/blip2/stage1.yaml
    features: true
    options:
      datasets.mini_world_caption.prepare_args: {WORLD}
      run.max_iters: 4
      run.save_every: 2
      run.batch_size_train: 4
      run.warmup_steps: 1
      run.k_test: 2
      run.test_splits: []
  search:
    of: stage1
    recipe: projects/blip2/eval/mini_retrieval.yaml
    every: 2
    options: {{datasets.mini_world_retrieval.prepare_args: {WORLD}, run.k_test: 2}}
variants:
  with ITG: {{}}
  without ITG: {{stage1: {{model.itg_weight: 0}}}}
scores: {{"R@1": search.test.txt_r1+img_r1}}
expected: [{{better: with ITG, than: without ITG, score: R@1}}]
seeds: [1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished ablation, made by the command."""
    path = tmp_path_factory.mktemp("lab")
    (path / "own.yaml").write_text(OWN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAVIS_LITE_CACHE", str(path / "cache"))
        assert run_command("lab", [str(path / "own.yaml"), "--out", str(path / "out")]) == 0
    return path


def again(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, object]]:
    """The rows after the same command once more."""
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(folder / "cache"))
    assert run_command("lab", [str(folder / "own.yaml"), "--out", str(folder / "out"), *more]) == 0
    return read_rows(folder / "out" / "own.jsonl")


def test_rows_have_every_point_of_every_variant(folder: Path) -> None:
    rows = read_rows(folder / "out" / "own.jsonl")
    assert [(row["variant"], row["seed"]) for row in rows] == [("with ITG", 1), ("without ITG", 1)]
    for row in rows:
        assert [at for at, _ in row["scores"]["R@1"]] == [2, 4]
        assert all(0 <= value <= 1 for _, value in row["scores"]["R@1"])
        assert row["seconds"]["stage1"] > 0 and row["seconds"]["search"] > 0
    results = sorted((folder / "out" / "runs").glob("stage1*/*/evaluations/*/results/test_step4.json"))
    means = [(one["txt_r1"] + one["img_r1"]) / 2 for one in (json.loads(path.read_text())["metrics"]
                                                              for path in results)]
    assert sorted(means) == sorted(row["scores"]["R@1"][-1][1] for row in rows)


def test_the_runs_are_ordinary_run_folders_on_saved_features(folder: Path) -> None:
    configs = sorted((folder / "out" / "runs").glob("stage1*/*/config.yaml"))
    texts = [path.read_text() for path in configs]
    assert len(texts) == 2 and sum("itg_weight: 0" in text for text in texts) == 1
    features, = (folder / "out" / "features").glob("*/mini_world_caption/manifest.json")
    assert all(f"features: {features.parent}" in text for text in texts)
    assert "With and without ITG" in (folder / "out" / "own.html").read_text()
    assert (folder / "out" / "own.png").is_file()


def test_finished_runs_are_not_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_rows(folder / "out" / "own.jsonl")
    monkeypatch.setattr(execute, "execute", lambda job: pytest.fail(f"{job.folder} ran again"))
    assert again(folder, monkeypatch) == before


def test_a_killed_run_continues_from_its_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its record and its last checkpoint, a run is as a kill leaves it after step 2."""
    before = read_rows(folder / "out" / "own.jsonl")
    killed = next(path.parent for path in (folder / "out" / "runs").glob("stage1*/*/config.yaml")
                  if "itg_weight: 0" in path.read_text())
    shutil.rmtree(killed / "checkpoints" / "step_00000004")
    shutil.rmtree(killed / "evaluations")
    (killed.parent / "record.json").unlink()
    for path in (folder / "out" / "runs").glob("search*/record.json"):
        path.unlink()
    after = again(folder, monkeypatch)
    assert [row["scores"] for row in after] == [row["scores"] for row in before]
    assert after[1]["seconds"]["stage1"] is None and after[0]["seconds"]["stage1"] is not None
    assert [path for path in killed.parent.iterdir() if path.is_dir()] == [killed]


@pytest.mark.long
def test_several_runs_at_once_give_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_rows(folder / "out" / "own.jsonl")
    for path in (folder / "out" / "runs").glob("*/record.json"):
        shutil.rmtree(path.parent)
    assert [row["scores"] for row in again(folder, monkeypatch, "--jobs", "2")] == [row["scores"] for row in before]


def test_a_score_that_is_not_measured_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "own.yaml"
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(folder / "cache"))
    wrong = folder / "wrong.yaml"
    wrong.write_text(own.read_text().replace("search.test.txt_r1+", "search.test.txt_r11+"))
    assert run_command("lab", [str(wrong), "--out", str(folder / "out")]) == 2
    assert "wrong: scores.R@1: search.test.txt_r11+img_r1 is not measured; did you mean 'txt_r1'" in \
        capsys.readouterr().err


def test_the_list_names_every_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("lab", ["list"]) == 0
    printed = capsys.readouterr().out
    assert "itg " in printed and "queries " in printed
    for word in ("list", "all"):
        assert run_command("lab", ["itg", word]) == 2
        assert f"`lab {word}` takes no further names" in capsys.readouterr().err
    assert run_command("lab", ["itg", "--jobs", "0"]) == 2
    assert "--jobs must be at least 1, not 0" in capsys.readouterr().err


def test_only_some_variants_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                                ) -> None:
    """A new seed of one variant; the rows of other seeds are not lost when they are named again."""
    ran: list[str] = []
    monkeypatch.setattr(execute, "_executed", lambda wave, at_once: iter(ran.extend(job.step for job in wave) or ()))
    assert again(folder, monkeypatch, "--seeds", "1", "2", "--variants", "with ITG") == again(folder, monkeypatch)
    assert ran == ["stage1", "search"]
    assert run_command("lab", [str(folder / "own.yaml"), "--out", str(folder / "out"), "--variants", "ITG"]) == 2
    assert "--variants: own has no 'ITG'; choose one of: with ITG, without ITG" in capsys.readouterr().err


def test_a_later_step_has_features_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model starts from a run that does not exist before the first step is done."""
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    short = "run.max_iters: 1, run.batch_size_train: 2, run.warmup_steps: 0, run.test_splits: []"
    world = "datasets.mini_world_caption.prepare_args: {train: 4, val: 0, test: 2, ood: 0, seed: %d}"
    (tmp_path / "two.yaml").write_text(f"""
title: Two data sets
paper: none
steps:
  stage1:
    {{recipe: projects/blip2/stage1.yaml, features: true, options: {{{world % 3}, {short}}}}}
  stage2:
    recipe: projects/blip2/stage2_opt.yaml
    features: true
    options: {{model.pretrained: "{{stage1}}", {world % 4}, {short.replace("[]", "[test]")}}}
variants: {{usual: {{}}}}
scores: {{F1: stage2.test.attribute_f1}}
expected: []
""", encoding="utf-8")
    assert run_command("lab", [str(tmp_path / "two.yaml"), "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "features").glob("*/mini_world_caption/manifest.json"))) == 2
    assert len(read_rows(tmp_path / "out" / "two.jsonl")) == 1


COMMANDED = f"""
title: Captions of a command
paper: none
steps:
  captions:
    command: data capfilt --ranker blip2:mini --k 1 --keep 1 --max-new-tokens 4
    recipe: projects/blip2/stage1.yaml
    options: {{datasets.mini_world_caption.prepare_args: {WORLD[:-1]}, caption_noise: 0.5}}}}
  stage1:
    recipe: projects/blip2/stage1.yaml
    options:
      datasets.mini_world_caption.prepare_args: {WORLD[:-1]}, caption_noise: 0.5}}
      datasets.mini_world_caption.build_info.annotations.train.storage: "{{captions}}/parts/00000.jsonl"
      run.max_iters: 1
      run.batch_size_train: 4
      run.warmup_steps: 0
      run.k_test: 2
variants: {{after the command: {{}}}}
scores: {{R@1: stage1.test.itm_txt_r1}}
seeds: [1, 2]
"""


def test_a_step_may_be_a_command_that_all_seeds_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.yaml").write_text(COMMANDED, encoding="utf-8")
    assert run_command("lab", [str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert [row["seed"] for row in read_rows(tmp_path / "out" / "own.jsonl")] == [1, 2]
    captions, = (tmp_path / "out" / "runs").glob("captions_*")
    assert len((captions / "parts" / "00000.jsonl").read_text().splitlines()) == 24
    config = next((tmp_path / "out" / "runs").glob("stage1_seed2_*/*/config.yaml")).read_text()
    assert f"{captions.name}/parts/00000.jsonl" in config
