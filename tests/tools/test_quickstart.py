"""The quickstart: three stages, each from the one before, and one table; two steps each on a tiny world."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, cache, environment  # noqa: F401  (a fixture)
from tools import quickstart

SHORT = ("run.max_iters=2", "run.warmup_steps=1", "run.batch_size_train=4", "run.num_workers=0")
WORLD = ".prepare_args={train: 24, val: 8, test: 8, ood: 4, seed: 3}"


@pytest.mark.slow
def test_three_stages_end_in_one_table(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
                                       capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in environment(cache).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    monkeypatch.chdir(tmp_path)
    data = ("mini_world_caption", "mini_world_caption", "mini_world_vqa")
    monkeypatch.setattr(quickstart, "STAGES", tuple(
        dataclasses.replace(stage, options=(*stage.options, f"datasets.{name}{WORLD}", *SHORT))
        for stage, name in zip(quickstart.STAGES, data, strict=True)))
    assert quickstart.run([]) == 0
    shown = capsys.readouterr().out
    table = shown[shown.index("\nwhat "):].splitlines()
    assert [line.split(":")[0] for line in table[3:6]] == ["stage 1", "stage 2", "instruction tuning"]
    columns = [line[len(stage.name):].split() for line, stage in zip(table[3:6], quickstart.STAGES, strict=True)]
    assert [len(row) for row in columns] == [3, 3, 3]
    for line in table[6:9]:
        assert line.startswith("report: ") and Path(line.removeprefix("report: ")).is_file()
    assert "begun from" in shown and "output/quickstart/stage1/" in shown


def test_a_stage_that_fails_ends_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.run(["run.max_itres=1"]) == 2
    assert "did you mean 'max_iters'" in capsys.readouterr().err
