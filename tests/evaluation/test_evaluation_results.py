"""The runner writes samples and pages after an evaluation, of what the task tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.base import Row
from tests.helpers.toy import Toy, ToyTask


class TellingTask(ToyTask):
    """Tells of every row."""

    def report(self, rows: list[Row], dataset: Any, split: str) -> list[ReportSample]:
        return [ReportSample(row["id"], scores={"error": row["error"]}) for row in rows]


def test_every_evaluation_leaves_its_samples_and_a_page(tmp_path: Path) -> None:
    run = {"valid_splits": ["val"], "test_splits": ["test"], "max_iters": 2, "report_samples": 5}
    Toy(tmp_path, run, task_class=TellingTask).build().train()
    results = tmp_path / "results"
    assert {path.name for path in results.glob("*.html")} == {"val_report.html", "test_report.html", "report.html"}
    assert (results / "report.html").read_text() == (results / "test_report.html").read_text()
    [samples] = results.glob("test_step*_samples.json")
    found = json.loads(samples.read_text())
    assert found["dataset"] == "toy" and [row["id"] for row in found["samples"]] == list(range(7))
    page = (results / "test_report.html").read_text()
    assert '"total":7' in page and page.count('"i":') == 5 and page.count("<polyline") >= 1


def test_pages_can_be_left_out_and_tasks_that_tell_nothing_leave_nothing(tmp_path: Path) -> None:
    Toy(tmp_path / "a", {"report": False}, task_class=TellingTask).build().evaluate(["val"])
    assert [path.name for path in (tmp_path / "a" / "results").iterdir() if "sample" in path.name] == [
        "val_step0_samples.json"] and not list((tmp_path / "a").rglob("*.html"))
    Toy(tmp_path / "b").build().evaluate(["val"])
    assert [path.name for path in (tmp_path / "b" / "results").iterdir()] == ["val_step0.json"]


def test_a_page_that_cannot_be_written_is_told_of(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results" / "val_report.html").mkdir(parents=True)
    said: list[str] = []
    runner = Toy(tmp_path, task_class=TellingTask).build()
    runner.tracker.log = said.append  # type: ignore[method-assign]
    assert runner.evaluate(["val"])["val"]["rows"] == 11
    assert any("the report of val cannot be written" in line for line in said)
