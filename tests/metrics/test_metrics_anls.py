"""ANLS against the recorded cases of two evaluations, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.anls import anls, anls_score, levenshtein


@pytest.mark.shared
def test_anls_of_all_recorded_cases(shared_dir: Path) -> None:
    found = json.loads((shared_dir / "data" / "metrics" / "anls_cases.json").read_text(encoding="utf-8"))["cases"]
    assert len(found) == 24
    for case in found:
        for rule, key in (("stvqa", "mmf_stvqa_anls"), ("spaces", "lmms_eval_anls")):
            assert anls_score(case["prediction"], case["answers"], rule) == pytest.approx(case[key], abs=1e-12), case


def test_anls_by_hand() -> None:
    assert levenshtein("kitten", "sitting") == levenshtein("sitting", "kitten") == 3
    assert levenshtein("", "abc") == 3 and levenshtein("", "") == 0
    assert anls(["stop", "x"], [["Stop "], ["y"]]) == 0.5
    assert anls_score("", [""]) == 1
    with pytest.raises(DataError, match="1 predictions and 2 lists"):
        anls(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no answers"):
        anls_score("a", [])
