"""Which rule scores answers when a run does not name one, and what rows of a task must have."""

from __future__ import annotations

from typing import Any

import pytest

from lavis_lite.errors import DataError
from lavis_lite.runners.evaluation import check_ids
from lavis_lite.tasks.vqa import VQARunConfig, VQATask


class Questions:
    """A data set whose questions have so many answers each."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return len(self.counts)

    def question(self, index: int) -> dict[str, Any]:
        return {"answers": ["red"] * self.counts[index]}


@pytest.mark.parametrize(("counts", "rule"), [((10, 10), "official"), ((4, 10), "official"), ((1, 1), "exact"),
                                              ((10, 1), "exact"), ((3, 3), "exact")])
def test_the_default_rule_gives_every_question_a_chance(counts: tuple[int, ...], rule: str) -> None:
    task = VQATask(VQARunConfig())
    assert task.cfg.vqa_rule == "auto" and task.rule(Questions(*counts)) == rule
    assert task.rule(Questions(10)) == "official"  # of another data set


def test_a_row_without_an_id_is_refused_by_the_name_of_its_task() -> None:
    check_ids("mine", [{"id": 1, "answer": "x"}])
    with pytest.raises(DataError, match="run.task=mine: each row .* needs an `id`.* only: answer, index"):
        check_ids("mine", [{"id": 1}, {"answer": "x", "index": 2}])
