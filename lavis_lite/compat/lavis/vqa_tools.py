"""LAVIS' `VQA` and `VQAEval` over this package's score of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavis_lite.metrics.vqa import Truth, vqa_accuracy


class VQA:
    """Questions and answers of a split, by question_id.

    Args:
        annotation_file: VQA's annotations, {"annotations": [{question_id, answers: [{answer}], ...}, ...]}.
        question_file: VQA's questions; not needed for scores.
    """

    def __init__(self, annotation_file: str | None = None, question_file: str | None = None) -> None:
        rows = json.loads(Path(annotation_file).read_text(encoding="utf-8"))["annotations"] if annotation_file else []
        self.qa: dict[Any, dict[str, Any]] = {row["question_id"]: row for row in rows}

    def getQuesIds(self) -> list[Any]:
        """Ids of all questions."""
        return list(self.qa)

    def loadRes(self, resFile: str, quesFile: str | None = None) -> VQA:
        """Results: a file of rows {question_id, answer}."""
        found = VQA()
        found.qa = {row["question_id"]: row for row in json.loads(Path(resFile).read_text(encoding="utf-8"))}
        return found


class VQAEval:
    """Accuracy of results in percent: `accuracy["overall"]`, `["perAnswerType"]`, `["perQuestionType"]`."""

    def __init__(self, vqa: VQA, vqaRes: VQA, n: int = 2) -> None:
        self.vqa, self.results, self.digits = vqa, vqaRes, n
        self.accuracy: dict[str, Any] = {}

    def evaluate(self, quesIds: list[Any] | None = None) -> None:
        """Score the answers to all questions, or to some."""
        wanted = self.vqa.getQuesIds() if quesIds is None else quesIds
        truths = {name: Truth([one["answer"] for one in self.vqa.qa[name]["answers"]],
                              answer_type=self.vqa.qa[name].get("answer_type", ""),
                              question_type=self.vqa.qa[name].get("question_type", "")) for name in wanted}
        answers = {name: self.results.qa[name]["answer"] for name in wanted if name in self.results.qa}
        scores = {name: round(100 * score, self.digits) for name, score in vqa_accuracy(answers, truths).items()}
        self.accuracy = {"overall": scores.pop("accuracy")}
        for kind in ("answer", "question"):
            start = f"accuracy_{kind}_"
            self.accuracy[f"per{kind.title()}Type"] = {
                name.removeprefix(start): score for name, score in scores.items() if name.startswith(start)}
