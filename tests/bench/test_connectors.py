"""The comparison of connectors: every system plans, rows run and are kept, the table names what was measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from benchmarks import connectors
from lavis_lite.lab.plan import plan
from tests.end_to_end.conftest import ROOT

TINY = {"train": 24, "val": 8, "test": 8, "ood": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ablation over a world of a few scenes."""
    monkeypatch.chdir(ROOT)
    ablation = copy.deepcopy(connectors.ABLATION)
    for step in ablation.steps.values():
        step.options["datasets.mini_world_caption.prepare_args"] = TINY
    monkeypatch.setattr(connectors, "ABLATION", ablation)


def test_every_system_plans_at_equal_steps(tmp_path: Path) -> None:
    cells = plan(connectors.ABLATION, tmp_path, [1])
    found = {name: jobs["captions"].composition().config.run for (name, _), jobs in cells.items()}
    assert len(found) == 8
    assert {(run.max_iters, run.batch_size_train, run.init_lr, run.warmup_steps) for run in found.values()} == {
        (400, 16, 2e-3, 40)}


def test_rows_run_once_and_make_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          pytestconfig: pytest.Config) -> None:
    records = tmp_path / "connectors.json"
    expected = [("LLaVA", 16_512, 64), *([("Frozen", 922_400, 2)] if pytestconfig.getoption("--long") else [])]
    for _ in range(2):
        connectors.run(2, [name for name, *_ in expected], tmp_path / "out", records)
    assert capsys.readouterr().out.count("2 runs, 2 of them finished") == len(expected)
    rows = json.loads(records.read_text())
    assert [(row["variant"], row["trained"], row["vectors"]) for row in rows] == expected
    lines = connectors.table(records).splitlines()
    assert len(lines) == 2 + len(expected) and lines[2].startswith("| LLaVA | 16,512 | 64 | 0.")
