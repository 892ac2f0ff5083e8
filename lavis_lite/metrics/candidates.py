"""Scores of candidates: accuracy of the best one, AUC of a class, the rank of the right one (dialogues).

A sample has C candidates with a score each, higher is better; NaN counts as the lowest. Ranks start at 1. Equal scores
keep the order of the candidates, so that a model that scores all alike lands where their order puts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isnan, log2

from lavis_lite.errors import DataError

KS = (1, 5, 10)
Scores = Sequence[float]


def order_of(scores: Scores) -> list[int]:
    """Places of the candidates, the best first."""
    return sorted(range(len(scores)), key=lambda place: (isnan(scores[place]), -scores[place]))


def ranks_of(scores: Scores) -> list[int]:
    """Rank of every candidate, in their order: what Visual Dialog's server takes."""
    ranks = [0] * len(scores)
    for rank, place in enumerate(order_of(scores), 1):
        ranks[place] = rank
    return ranks


def share_of(scores: Scores, place: int) -> float:
    """Softmax of log-likelihoods at one place: the probability of that candidate among all."""
    top = max(scores)
    return exp(scores[place] - top) / sum(exp(score - top) for score in scores)


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a positive sample scores above a negative one, equal scores counting half.

    Raises:
        DataError: there is no positive, or no negative sample.
    """
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise DataError(f"AUC needs samples of both classes; of {len(labels)} samples {positives} are positive. "
                        "Check the candidate that run.positive names.")
    ordered = sorted(zip(scores, labels, strict=True))
    wins, below, at = 0.0, 0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        ups = sum(label for _, label in ordered[at:end])
        downs = end - at - ups
        wins += ups * (below + downs / 2)
        below, at = below + downs, end
    return wins / (positives * negatives)


def rank_scores(ranks: Sequence[int]) -> dict[str, float]:
    """Visual Dialog's sparse scores of the ranks of the right answers: r1, r5, r10, mean_rank, mrr.

    Raises:
        DataError: there is no rank.
    """
    if not ranks:
        raise DataError("no question was ranked, so there is nothing to score.")
    recalls = {f"r{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in KS}
    return {**recalls, "mean_rank": sum(ranks) / len(ranks), "mrr": sum(1 / rank for rank in ranks) / len(ranks)}


def ndcg(scores: Scores, relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain at k = number of candidates with any relevance, as Visual Dialog has it.

    Raises:
        DataError: relevances of another number of candidates.
    """
    if len(scores) != len(relevance):
        raise DataError(f"{len(relevance)} relevances for {len(scores)} candidates; the dense annotations belong to "
                        "another split.")
    best = sorted((value for value in relevance if value > 0), reverse=True)
    if not best:
        return 0.0
    found = [relevance[place] for place in order_of(scores)[:len(best)]]
    return _gain(found) / _gain(best)


def _gain(values: Sequence[float]) -> float:
    return sum(value / log2(place + 2) for place, value in enumerate(values))
