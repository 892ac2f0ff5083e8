"""Which rule scores answers when a run does not name one, and what rows of a task must have."""

from __future__ import annotations

from typing import Any

import pytest

from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.evaluation.evaluator import check_ids
from lavis_lite.registry import registry
from lavis_lite.tasks.vqa import VQARunConfig, VQATask
from tests.helpers.toy import ToyModel


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


def test_a_few_questions_that_decide_the_default_rule_are_told() -> None:
    with pytest.warns(UserWarning, match="1 of 3 questions have fewer than 4 answers, so the rule auto scores all by "
                                         "exact"):
        assert VQATask(VQARunConfig()).rule(Questions(10, 3, 10)) == "exact"


@pytest.mark.parametrize(("rule", "last", "reason"), [
    ("official", 1, "has one answer; run.vqa_rule=official leaves one"),
    ("official", 0, "the rule official needs the answers of annotators, but the question has none"),
    ("vizwiz", 10, "run.vqa_rule=vizwiz: the rule vizwiz needs annotations with answer_confidence")])
def test_a_rule_is_checked_on_every_question(rule: Any, last: int, reason: str) -> None:
    class Told(Questions):
        has_answers = True

        def question(self, index: int) -> dict[str, Any]:
            answers = super().question(index)["answers"]
            confidences = ["yes"] * len(answers) if index < 2 else []
            return {"question_id": f"q{index}", "answers": answers, "confidences": confidences}

    task = VQATask(VQARunConfig(vqa_rule=rule))
    task._check_rule(Told(10, 10), "val")
    with pytest.raises(DataError, match=f"split 'val', question_id 'q2'.*{reason}"):
        task._check_rule(Told(10, 10, last), "val")


@pytest.mark.parametrize(("task", "method"), [("retrieval", "forward_image"), ("captioning", "generate"),
                                              ("vqa", "predict_answers"), ("ranking", "score_candidates")])
def test_a_model_that_a_task_cannot_evaluate_is_refused_by_name(task: str, method: str) -> None:
    cls = registry.get_task_class(task)
    chosen = cls(cls.config_class(task=task))
    with pytest.raises(ConfigError, match=rf"run\.task={task} cannot evaluate ToyModel, which has no .*{method}"):
        chosen.check_model(ToyModel())


def test_a_row_without_an_id_is_refused_by_the_name_of_its_task() -> None:
    check_ids("mine", [{"id": 1, "answer": "x"}])
    with pytest.raises(ContractError, match="run.task=mine: each row .* needs an `id`.* only: answer, index"):
        check_ids("mine", [{"id": 1}, {"answer": "x", "index": 2}])
