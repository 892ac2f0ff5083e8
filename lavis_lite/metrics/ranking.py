"""Scores of ranked candidates: dialog retrieval and the area under the ROC curve; pure functions over arrays.

Higher scores are better. Equal scores keep the order of the candidates, so a model that scores all of them equally is
ranked by their order. NaN counts as the lowest score, below -inf. Ranks start at 1.

Dialog: MRR, recall@k, mean rank and NDCG as the Visual Dialog challenge computes them (Das et al., CVPR 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lavis_lite.errors import DataError

KS = (1, 5, 10)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def order(scores: ArrayLike) -> Ints:
    """Indices of the candidates, the best first: float[..., C] -> int64[..., C]."""
    values = np.asarray(scores, dtype=np.float64)
    return np.argsort(-values, axis=-1, kind="stable")  # NaN sorts last


def ranks(scores: ArrayLike) -> Ints:
    """Rank of every candidate, 1 for the best, in candidate order: the format of Visual Dialog's server.

    Args:
        scores: float[..., C].

    Returns:
        int64[..., C].
    """
    ordered = order(scores)
    found = np.empty_like(ordered)
    np.put_along_axis(found, ordered, np.broadcast_to(np.arange(1, ordered.shape[-1] + 1), ordered.shape), axis=-1)
    return found


def shares(scores: ArrayLike) -> Floats:
    """Softmax of log-likelihoods, float[..., C]: each candidate's probability among all; 0 for NaN.

    Shares are equal if no candidate has a likelihood above 0.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = np.where(np.isnan(values), -np.inf, values)
    top = values.max(axis=-1, keepdims=True)
    mass = np.exp(np.where(np.isneginf(top), 0.0, values - np.where(np.isneginf(top), 0.0, top)))
    return np.asarray(mass / mass.sum(axis=-1, keepdims=True))


def rank_scores(true_ranks: ArrayLike) -> dict[str, float]:
    """Visual Dialog's sparse scores from the ranks of the right candidates.

    Args:
        true_ranks: int[...], 1 for the best.

    Returns:
        r1, r5, r10 (fractions), mean_rank and mrr (mean reciprocal rank).

    Raises:
        DataError: there is no rank, or a rank below 1.
    """
    found = np.asarray(true_ranks, dtype=np.float64).ravel()
    if not found.size:
        raise DataError("no question was ranked, so there is nothing to score.")
    if not found.min() >= 1:
        raise DataError(f"ranks begin at 1; one is {found.min():g}.")
    return {**{f"r{k}": float((found <= k).mean()) for k in KS},
            "mean_rank": float(found.mean()), "mrr": float((1 / found).mean())}


def dialog_scores(scores: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """`rank_scores` of the right candidate of each round.

    Args:
        scores: float[..., C].
        truth: int[...], index of the right one.

    Raises:
        DataError: an index is out of range.
    """
    values, index = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    wrong = (index < 0) | (index >= values.shape[-1])
    if wrong.any():
        raise DataError(f"the right answer of {int(wrong.sum())} rounds is not among their {values.shape[-1]} "
                        f"candidates; the first index is {int(index[wrong][0])}.")
    return rank_scores(np.take_along_axis(ranks(values), index[..., None], axis=-1))


def ndcg(scores: ArrayLike, relevance: ArrayLike) -> float:
    """Normalised discounted cumulative gain, mean over rounds; k is each round's number of relevant candidates.

    Rounds without a relevant candidate have no such score and are left out.

    Args:
        scores: float[N, C], or float[C] of one round.
        relevance: the same shape, in [0, 1].

    Raises:
        DataError: shapes differ, or no round has a relevant candidate.
    """
    gains, ranked = np.atleast_2d(np.asarray(relevance, dtype=np.float64)), np.atleast_2d(ranks(scores))
    if gains.shape != ranked.shape:
        raise DataError(f"relevances {gains.shape} do not fit candidates {ranked.shape}; the dense annotations belong "
                        "to another split.")
    k = (gains > 0).sum(axis=1, keepdims=True)
    if not k.any():
        raise DataError("no round has a relevant candidate, so NDCG cannot be computed.")
    best = -np.sort(-gains, axis=1)
    discount = 1 / np.log2(np.arange(gains.shape[1]) + 2)
    found = np.where(ranked <= k, gains / np.log2(ranked + 1), 0).sum(axis=1)
    known = k[:, 0] > 0
    return float((found[known] / (best[known] * discount).sum(axis=1)).mean())


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive sample scores above a negative one, equal scores counting half.

    Args:
        scores: float[N], higher is more positive.
        labels: N times 0 or 1.

    Raises:
        DataError: a label is neither 0 nor 1, or all labels are equal.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    positives = int((truth == 1).sum())
    negatives = int((truth == 0).sum())
    if values.shape != truth.shape or positives + negatives != truth.size or not positives or not negatives:
        raise DataError(f"AUC needs one label, 0 or 1, per score, and samples of both classes; there are {values.size} "
                        f"scores, {positives} labels 1 and {negatives} labels 0. Check the candidate that run.positive "
                        "names.")
    values = np.where(np.isnan(values), -np.inf, values)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # mean rank of equal scores
    above = middle[group][truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
