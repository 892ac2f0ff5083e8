"""A submission that a spreadsheet opens runs no formula, and a server still reads its numbers."""

from __future__ import annotations

import csv
import io

import pytest

from lavis_lite.tasks.config import Submission, as_cell


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1",
                                  "=cmd|'/c calc'!A0", "-", "+", "＝1", "-nan", "+inf", "-1_0", "- 1"])
def test_texts_that_would_be_formulas_get_an_apostrophe(text: str) -> None:
    content = Submission("hatefulmemes", [{"id": text, "proba": 0.25, "label": 1}]).text()
    [row] = csv.DictReader(io.StringIO(content, newline=""))
    assert row["id"] == "'" + text.replace("\r", " ") and row["proba"] == "0.25" and row["label"] == "1"


@pytest.mark.parametrize("value", [-0.5, -3, 1e-9, "-0.5", "+3", "-1e-05", "12", "yes", "a=b", "1+1", "", "007", True])
def test_numbers_and_other_texts_stay_as_they_are(value: object) -> None:
    assert as_cell(value) == value
