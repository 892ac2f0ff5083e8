"""Average normalised Levenshtein similarity of answers that were read in a picture (Biten et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lavis_lite.errors import DataError

THRESHOLD = 0.5
"""similarity below which an answer counts as wrong"""
Rule = Literal["stvqa", "spaces"]


def levenshtein(one: str, two: str) -> int:
    """Smallest number of insertions, deletions and replacements of characters between two texts."""
    if len(one) < len(two):
        one, two = two, one
    row = list(range(len(two) + 1))
    for position, character in enumerate(one, 1):
        last, row[0] = row[0], position
        for column, other in enumerate(two, 1):
            last, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, last + (character != other))
    return row[-1]


def similarity(prediction: str, answer: str, rule: Rule = "stvqa") -> float:
    """1 - distance / length of the longer text, in [0, 1]; ignores case and outer blanks.

    Args:
        rule: stvqa, as mmf's evaluation of ST-VQA; spaces, as lmms-eval, which joins runs of blanks but takes the
            lengths of the original texts.
    """
    lengths = len(prediction), len(answer)
    prediction, answer = prediction.strip().lower(), answer.strip().lower()
    if rule == "spaces":
        prediction, answer = " ".join(prediction.split()), " ".join(answer.split())
    else:
        lengths = len(prediction), len(answer)
    return 1 - levenshtein(prediction, answer) / max(*lengths) if max(lengths) else 1.0


def anls_score(prediction: str, answers: Sequence[str], rule: Rule = "stvqa") -> float:
    """Best similarity of one prediction with any answer; 0 if it is below one half.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("a prediction cannot be scored against no answers")
    best = max(similarity(prediction, answer, rule) for answer in answers)
    return best if best >= THRESHOLD else 0.0


def anls(predictions: Sequence[str], answers: Sequence[Sequence[str]], rule: Rule = "stvqa") -> float:
    """Mean of `anls_score` over questions.

    Raises:
        DataError: there is no question, not one list of answers per prediction, or a list is empty.
    """
    if not predictions or len(predictions) != len(answers):
        raise DataError(f"ANLS needs one list of answers per prediction; there are {len(predictions)} predictions and "
                        f"{len(answers)} lists of answers.")
    if (bare := sum(not right for right in answers)):
        raise DataError(f"{bare} of {len(answers)} questions have no answers, so that ANLS cannot score them.")
    return sum(anls_score(one, right, rule) for one, right in zip(predictions, answers, strict=True)) / len(predictions)
