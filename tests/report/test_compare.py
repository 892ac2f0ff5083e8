"""Two runs side by side: intervals against the textbook, samples that flip, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_lite.cli.main import run_command
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.evaluation.results import Evaluation, write_samples
from lavis_lite.report.bootstrap import paired
from lavis_lite.report.compare import Flip, compare
from lavis_lite.report.compare_text import _lines, as_json, page, text
from lavis_lite.report.page import make_newest
from lavis_lite.report.sample import ReportSample


def run_folder(folder: Path, right: list[bool], split: str = "test", step: int = 3, lr: str = "1e-4",
               first: int = 0, dataset: str = "toy") -> Path:
    (folder / "results").mkdir(parents=True, exist_ok=True)
    run = f"  init_lr: {lr}\n  seed: 1\n  output_dir: {folder}\n"
    (folder / "config.yaml").write_text(f"run:\n{run}model: {{arch: x}}\n")
    samples = [ReportSample(first + n, "yes" if one else "<b>no</b> \ud800", f"is it {n}?", ["yes"],
                            {"accuracy": float(one)}, one) for n, one in enumerate(right)]
    metrics = {"accuracy": sum(right) / len(right), "loss": 2.0}
    results = folder / "results"
    (results / f"{split}_step{step}.json").write_text(json.dumps({"split": split, "step": step, "metrics": metrics}))
    write_samples(results / f"{split}_step{step}_samples.json", split, step, dataset, Evaluation(metrics, samples))
    return folder


def test_intervals_of_few_values_are_those_of_the_normal_law() -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.random(2000) < rate for rate in (0.5, 0.6))
    found = paired(list(map(float, a)), list(map(float, b)))
    width = 1.96 * np.std(b.astype(float) - a) / 2000 ** 0.5
    assert found.difference.mean == pytest.approx(b.mean() - a.mean())
    assert found.difference.low == pytest.approx(found.difference.mean - width, abs=0.003)
    assert found.difference.high == pytest.approx(found.difference.mean + width, abs=0.003)
    assert found.differ and found.better > 0.999 and found == paired(list(map(float, a)), list(map(float, b)))


def test_many_values_are_resampled_by_drawing_samples() -> None:
    generator = np.random.default_rng(2)
    a = generator.normal(1.0, 1.0, 600)
    found = paired(list(a), list(a + 0.01), resamples=2000)
    assert found.difference.low == pytest.approx(0.01) and found.difference.high == pytest.approx(0.01)
    width = 1.96 * a.std() / 600 ** 0.5
    assert found.a.high - found.a.low == pytest.approx(2 * width, rel=0.1)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [])


def test_a_handful_of_samples_decides_nothing() -> None:
    """Resamples of one sample are all alike, so that their interval has no width."""
    assert not paired([0.0] * 5, [1.0] * 5).differ and paired([0.0] * 6, [1.0] * 6).differ
    assert not paired([0.5], [0.7]).differ


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Four copies of each sample tell no more than one."""
    generator = np.random.default_rng(3)
    a, b = (list(map(float, generator.random(300) < rate)) for rate in (0.5, 0.6))
    alone, copies = paired(a, b), paired(a * 4, b * 4)
    together = paired(a * 4, b * 4, list(range(300)) * 4)
    assert together.difference.mean == pytest.approx(alone.difference.mean) and together.groups == 300
    width = alone.difference.high - alone.difference.low
    assert together.difference.high - together.difference.low == pytest.approx(width, rel=0.05)
    assert copies.difference.high - copies.difference.low == pytest.approx(width / 2, rel=0.1)
    uneven = paired([1.0, 1.0, 1.0, 0.0], [0.0] * 4, ["p", "p", "p", "q"])
    assert (uneven.a.mean, uneven.groups) == (0.75, 2) and (uneven.a.low, uneven.a.high) == (0.0, 1.0)


def test_what_changed_what_it_did_and_which_samples_flipped(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", [True] * 10 + [False] * 30, step=2)
    run_folder(a, [False] * 40, step=1)
    b = run_folder(tmp_path / "b", [False, *[True] * 29, *[False] * 10], lr="2e-4")
    found = compare(a, b / "results")
    assert dict(found.config) == {"run.init_lr": ("1e-4", "2e-4")}
    [split] = found.splits
    assert split.steps == (2, 3) and [flip.a["id"] for flip in split.lost] == [0]
    assert [flip.a["id"] for flip in split.gained] == list(range(10, 30))
    one = split.intervals["accuracy"]
    assert (one.a.mean, one.b.mean) == (0.25, 0.725) and one.differ and split.metrics["loss"] == (2.0, 2.0)
    printed = text(found)
    assert "run.init_lr  1e-4  ->  2e-4" in printed and "B right, A wrong: 20" in printed and "+0.4750" in printed
    assert json.loads(as_json(found))["splits"][0]["lost"] == [0]
    written = page(found)
    assert "&lt;b&gt;no&lt;/b&gt; ?" in written and "<b>no" not in written and "<script" not in written


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (run_folder(tmp_path / name, [True, False]) for name in "ab")
    assert run_command("compare", [str(a), str(b), "--json", "--html", str(tmp_path / "x.html")]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == {} and (tmp_path / "x.html").stat().st_size > 1000
    assert run_command("compare", [str(a), str(tmp_path / "bb")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_same_run_against_itself_and_folders_that_are_none(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "runs" / "20260101-000000", [True, False])
    printed = text(compare(a, a))
    assert "test, step 3, 2 samples" in printed and "Every sample has the same score in both." in printed
    assert "A and B are the same folder" in printed and "right" not in printed
    assert compare(a, tmp_path / "runs").b == a
    with pytest.raises(ConfigError, match="config.yaml is a file; give the run folder"):
        compare(a, a / "config.yaml")


def test_long_texts_stand_below_each_other() -> None:
    long = "a man rides a wave on a surfboard while a dog looks on from the shore"
    a, b = ({"id": 7, "scores": {"CIDEr": score}, "prediction": said, "references": [long, long]}
            for score, said in ((0.1, long), (0.2, f"{long}\u2028twice")))
    assert _lines(Flip("d", a, b)) == ["7", f"  A          {long}", f"  B          {long} twice",
                                       f"  reference  {long}", f"  reference  {long}"]


@pytest.mark.parametrize("keys, error, words", [
    ({"split": "val"}, ConfigError, "no split is in both: .* 'test', .* 'val'"),
    ({"first": 1}, DataError, "1 only in .*, the first 0; 1 only in .*, the first 2"),
    ({"dataset": "other"}, DataError, "of different data sets: 'toy' in .*, 'other'"),
])
def test_what_is_not_the_same_is_not_compared(tmp_path: Path, keys: dict[str, Any], error: type[Exception],
                                              words: str) -> None:
    a, b = run_folder(tmp_path / "a", [True, False]), run_folder(tmp_path / "b", [True, True], **keys)
    with pytest.raises(error, match=words):
        compare(a, b)


def test_samples_of_other_files_with_the_same_numbers_are_told(tmp_path: Path) -> None:
    """Questions without ids are numbered, so another file has the same ids."""
    a, b = run_folder(tmp_path / "a", [True] * 3), run_folder(tmp_path / "b", [True] * 3)
    assert compare(a, b).notes == []
    path = b / "results" / "test_step3_samples.json"
    path.write_text(path.read_text().replace('["yes"]', '["no"]', 2))
    [note] = compare(a, b).notes
    assert note.startswith("2 of 3 samples of toy 'test' have other right answers in B, the first 0")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    a, b = (run_folder(tmp_path / name, [True, False]) for name in "ab")
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match="holds no results"):
        compare(a, tmp_path / "c")
    with pytest.raises(ConfigError, match="'val' is not in both"):
        compare(a, b, "val")
    (b / "config.yaml").unlink()
    samples = b / "results" / "test_step3_samples.json"
    whole = samples.read_text()
    samples.unlink()
    found = compare(a, b)
    assert "has no test_step<N>_samples.json" in text(found) and "has no config.yaml" in text(found)
    samples.write_text(whole[:-20])
    with pytest.raises(DataError, match="damaged"):
        compare(a, b)


def test_the_newest_page_has_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("val", "test"):
        (tmp_path / f"{name}_report.html").write_text(name)
        assert make_newest(tmp_path / f"{name}_report.html").read_text() == name
    assert (tmp_path / "val_report.html").read_text() == "val" and len(list(tmp_path.iterdir())) == 3
