"""Answers out of a list by likelihood: what a model says of each, and the best of them for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavis_lite.metrics.ranking import order, shares
from lavis_lite.models.blip2.prompts import question_prompts
from lavis_lite.models.language.contract import PAIRS_AT_ONCE
from lavis_lite.models.protocols import Ranker
from lavis_lite.tasks.writing import PICTURES

KEPT = 10
"""candidates of each sample that rows and reports hold; the answer lists of real data sets have thousands"""
Likeliest = list[list[Any]]
"""[answer, log-likelihood in nats, its share of the probability of all candidates], likeliest first; lists, as JSON
gives them back"""


def likeliest(answers: Sequence[str], scores: Sequence[float], most: int = KEPT) -> Likeliest:
    """The first `most` answers by score; equal ones keep their order."""
    share = shares(scores).tolist()
    return [[answers[place], scores[place], share[place]] for place in order(scores)[:most].tolist()]


def likeliest_answers(model: Ranker, samples: dict[str, Any], answers: Sequence[str], prompt: str) -> list[Likeliest]:
    """One list per question of a batch; the first of it is what `predict_answers` calls the answer by rank.

    Args:
        model: scores candidates one by one.
        samples: image or video, text_input, and what else the prompt takes.
        answers: candidates, the same for all.
        prompt: template around the question; "": none.
    """
    size = len(samples["text_input"])
    asked: dict[str, Any] = {key: samples[key] for key in PICTURES if key in samples}
    asked["prompt"] = question_prompts(samples, prompt, size)
    segments = max(1, -(-size * len(answers) // PAIRS_AT_ONCE))
    scores = model.score_candidates(asked, list(answers), n_segments=segments).float().tolist()
    return [likeliest(answers, row) for row in scores]
