"""VQA accuracy of a whole split, overall and by type; pure functions over strings.

`answer_rules` scores one answer, `answer_cleaning` cleans texts. Scores are fractions in [0, 1]; the official scripts
print percents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from lavis_lite.errors import DataError
from lavis_lite.metrics.answer_cleaning import normalise, normalise_textvqa
from lavis_lite.metrics.answer_rules import (
    RULES,
    AnswerRule,
    Rule,
    Truth,
    answer_score,
    chosen_rule,
    lacking,
    truth_score,
)

__all__ = ["RULES", "AnswerRule", "Id", "Majority", "Rule", "Truth", "accuracies", "answer_score", "gqa_accuracy",
           "normalise", "normalise_textvqa", "question_scores", "vqa_accuracy"]

Id = int | str


def question_scores(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: AnswerRule = "official",
                    answer_ids: bool = True) -> dict[Id, float]:
    """`answer_score` of every question by its id; the rule auto is chosen by the number of annotators.

    Raises:
        ConfigError: there is no such rule.
        DataError: a prediction for an unknown question, or a question without one (both as in the official script). A
            prediction that is not text. A question that lacks what the rule needs.
    """
    rule = chosen_rule(rule, (len(truth.answers) for truth in truths.values()))
    _refuse_other_questions(predictions, truths)
    for name, text in predictions.items():
        if not isinstance(text, str):
            raise DataError(f"question_id {name!r}: the prediction must be text; it is {text!r}.")
        if reason := lacking(truths[name], rule):
            raise DataError(f"question_id {name!r}: {reason}.")
    if rule == "official" and not answer_ids:
        return {name: answer_score(text, truths[name].answers, rule, False) for name, text in predictions.items()}
    return {name: truth_score(text, truths[name], rule) for name, text in predictions.items()}


def _refuse_other_questions(predictions: Mapping[Id, str], truths: Mapping[Id, Truth]) -> None:
    """Check that predictions and questions have the same ids."""
    unknown = [name for name in predictions if name not in truths]
    if unknown:
        alike = {str(name): name for name in truths}.get(str(unknown[0]))
        hint = ("Score them with the annotations of the split they were made for." if alike is None else
                f"The annotations have {alike!r}: ids must be numbers in both files, or text in both.")
        what = "1 prediction is for an unknown question" if len(unknown) == 1 else (
            f"{len(unknown)} predictions are for unknown questions")
        raise DataError(f"{what}, the first for question_id {unknown[0]!r}. {hint}")
    bare = [name for name in truths if name not in predictions]
    if bare:
        raise DataError(f"{len(bare)} of {len(truths)} questions have no prediction, the first is question_id "
                        f"{bare[0]!r}; evaluate the whole split.")


def accuracies(scores: Mapping[Id, float], truths: Mapping[Id, Truth]) -> dict[str, float]:
    """Means of per-question scores.

    Returns:
        accuracy, and accuracy_answer_<type> and accuracy_question_<type> for the types that occur.

    Raises:
        DataError: there is no question.
    """
    if not scores:
        raise DataError("no question was answered, so there is nothing to score.")
    groups: dict[str, list[float]] = {"accuracy": []}
    for name, score in scores.items():
        truth = truths[name]
        groups["accuracy"].append(score)
        for kind, value in (("answer", truth.answer_type), ("question", truth.question_type)):
            if value:
                groups.setdefault(f"accuracy_{kind}_{_slug(value)}", []).append(score)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def vqa_accuracy(predictions: Mapping[Id, str], truths: Mapping[Id, Truth], rule: AnswerRule = "official",
                 answer_ids: bool = True) -> dict[str, float]:
    """Accuracy of a split, overall and by type; see `question_scores` and `accuracies`."""
    return accuracies(question_scores(predictions, truths, rule, answer_ids), truths)


def gqa_accuracy(predictions: Mapping[Id, str], answers: Mapping[Id, str]) -> float:
    """GQA: share of right answers after cleaning both texts as VQA answers (as LAVIS does).

    Raises:
        DataError: as `question_scores`.
    """
    return vqa_accuracy(predictions, {name: Truth([answer]) for name, answer in answers.items()}, "exact")["accuracy"]


class Majority:
    """A baseline without images: the most frequent answer of the training questions.

    Args:
        pairs: (question, its most frequent answer) of the training split.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        by_question: dict[str, Counter[str]] = {}
        overall: Counter[str] = Counter()
        for question, answer in pairs:
            by_question.setdefault(question.strip().lower(), Counter())[answer] += 1
            overall[answer] += 1
        if not overall:
            raise DataError("the training split has no answers, so there is no majority to compare with.")
        self.overall = overall.most_common(1)[0][0]
        self.by_question = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}

    def answer(self, question: str) -> str:
        """The most frequent answer to this question, or of all questions if it is new."""
        return self.by_question.get(question.strip().lower(), self.overall)
