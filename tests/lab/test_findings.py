"""Intervals and verdicts from rows, the figure, the page, and Markdown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_lite.errors import DataError
from lavis_lite.lab.ablation import Ablation, Axis, Expectation, Step
from lavis_lite.lab.figure import draw
from lavis_lite.lab.findings import T95, interval, read_rows, summarise
from lavis_lite.lab.page import markdown, page


def ablation(**more: Any) -> Ablation:
    return Ablation("own", "Warm <or> cold", "A paper", "", {"train": Step("r.yaml")}, {"warm": {}, "cold": {}},
                    {"R@1": "train.test.r1"}, [Expectation("warm", "cold", "R@1")], **more)


def row(variant: str, seed: int, *points: tuple[int, float], seconds: float | None = 10.0) -> dict[str, Any]:
    return {"ablation": "own", "variant": variant, "seed": seed, "scores": {"R@1": [list(one) for one in points]},
            "seconds": {"train": seconds}, "threads": 1, "date": f"2026-11-0{seed}"}


def rows(warm: list[float], cold: list[float]) -> list[dict[str, Any]]:
    return [row(name, seed, (5, value / 2), (10, value)) for name, values in (("warm", warm), ("cold", cold))
            for seed, value in enumerate(values, 1)]


def test_the_interval_is_students() -> None:
    """mean 2, standard deviation 1: half of the interval is t / sqrt(n); t of 2 degrees is 4.3027."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert math.isnan(interval([0.5]).low) and str(interval([0.5])) == "0.500"
    many = interval([0.0, 1.0] * 20)
    assert many.high - many.mean == pytest.approx(T95[-1] * 0.50637 / math.sqrt(40), rel=1e-3)


@pytest.mark.parametrize(("warm", "cold", "verdict"), [
    ([0.5, 0.7, 0.9], [0.4, 0.6, 0.8], "found"),        # far apart from seed to seed, but always 0.1 above
    ([0.4, 0.6, 0.8], [0.5, 0.7, 0.9], "opposite"),
    ([0.5, 0.7, 0.9], [0.6, 0.5, 0.9], "undecided"),
    ([0.5, 0.6], [0.4, 0.5], "not run"),                # two seeds may agree by chance
    ([], [0.4], "not run"),
])
def test_directions_are_compared_seed_by_seed(warm: list[float], cold: list[float], verdict: str) -> None:
    finding, = summarise(ablation(), rows(warm, cold)).findings
    assert finding.verdict == verdict
    if verdict == "found":
        assert finding.sentence() == ("R@1: warm over cold: +0.100 [+0.100, +0.100], 3 seeds; the paper's direction is "
                                      "found.")


def test_the_table_has_the_last_points_and_the_time_of_all_steps() -> None:
    summary = summarise(ablation(), rows([0.5, 0.7], [0.25]))
    assert summary.table() == (["variant", "R@1", "processor time"],
                               [["warm", "0.600 ± 1.271", "10 s"], ["cold", "0.250", "10 s"]])
    assert summary.curves["warm", "R@1"][5].mean == pytest.approx(0.3)
    assert (summary.seeds, summary.dates) == ([1, 2], ["2026-11-01", "2026-11-02"])
    stopped = summarise(ablation(), [row("warm", 1, (5, 0.4)), row("warm", 2, (5, 0.1), (10, 0.6))])
    assert stopped.scores["warm", "R@1"].values == (0.4, 0.6), "a seed that stopped early counts with its last point"
    unknown = summarise(ablation(), [row("warm", 1, (10, 0.5), seconds=None)])
    assert unknown.table()[1] == [["warm", "0.500", "-"], ["cold", "-", "-"]]


@pytest.mark.parametrize("axis", [None, Axis("degrees", {"warm": 30, "cold": 3})])
def test_the_figure_is_drawn(tmp_path: Path, axis: Axis | None) -> None:
    """Curves over steps, and a line over numbers of the variants."""
    draw(summarise(ablation(axis=axis), rows([0.5, 0.7], [0.25, 0.3])), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**6) or []) > 20


def test_single_points_are_drawn_as_rows(tmp_path: Path) -> None:
    draw(summarise(ablation(), [row("warm", 1, (10, 0.5)), row("warm", 2, (10, 0.6))]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 200


def test_page_and_markdown_say_what_was_found_and_what_was_not_run(tmp_path: Path) -> None:
    run, not_run = summarise(ablation(), rows([0.5, 0.7, 0.6], [0.4, 0.6, 0.5])), summarise(ablation(), [])
    draw(run, tmp_path / "own.png")
    text = page([run, not_run], {"own": tmp_path / "own.png"})
    assert "Warm &lt;or&gt; cold" in text and "data:image/png;base64," in text and "Not run." in text
    assert "<td>found</td>" in text and "<td>not run</td>" in text and "<script" not in text
    assert "| warm | 0.600" in markdown(run) and markdown(run).endswith("Seeds 1, 2, 3; 2026-11-01 to 2026-11-03.")
    assert "|" not in markdown(not_run) and markdown(not_run).endswith("Not run.")


def test_a_damaged_file_of_rows_is_an_error(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []
    (tmp_path / "own.jsonl").write_text('{"seed": 1}\n{"se')
    with pytest.raises(DataError, match="own.jsonl has a damaged line"):
        read_rows(tmp_path / "own.jsonl")
