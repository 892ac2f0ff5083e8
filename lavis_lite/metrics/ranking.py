"""Scores of rankings and of choices: dialog retrieval, area under the ROC curve, accuracy by group; pure functions.

Dialog: MRR, recall@k, mean rank and NDCG as the Visual Dialog challenge computes them (Das et al., CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lavis_lite.errors import DataError
from lavis_lite.metrics.vqa import normalise

RECALLS = (1, 5, 10)


def ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Rank of every option, 1 for the best.

    Args:
        scores: float[..., O], higher is better; of equal scores the first option ranks first.

    Returns:
        int64[..., O].
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("scores of options must be finite numbers; some are NaN or infinite.")
    order = np.argsort(-values, axis=-1, kind="stable")
    found = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(found, order, np.broadcast_to(np.arange(1, values.shape[-1] + 1), values.shape), axis=-1)
    return found


def rank_scores(true_ranks: ArrayLike) -> dict[str, float]:
    """Summary of the ranks that the true options got.

    Args:
        true_ranks: int[...], 1 for the best.

    Returns:
        r@1, r@5, r@10 (fractions), mean (rank) and mrr (mean reciprocal rank).

    Raises:
        DataError: there is no rank, or one below 1.
    """
    places = np.asarray(true_ranks, dtype=np.float64).ravel()
    if not places.size or places.min() < 1:
        raise DataError("there must be at least one rank, and ranks begin at 1.")
    return {**{f"r@{k}": float((places <= k).mean()) for k in RECALLS},
            "mean": float(places.mean()), "mrr": float((1 / places).mean())}


def dialog_scores(scores: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """`rank_scores` of the true option of each round.

    Args:
        scores: float[..., O] of the options.
        truth: int[...], place of the true option.
    """
    places = np.asarray(truth, dtype=np.int64)
    return rank_scores(np.take_along_axis(ranks(scores), places[..., None], axis=-1))


def ndcg(scores: ArrayLike, relevance: ArrayLike) -> float:
    """Normalised discounted cumulative gain, mean over rounds; k is each round's number of relevant options.

    Args:
        scores: float[N, O].
        relevance: float[N, O] in [0, 1].

    Raises:
        DataError: shapes differ, or a round has no relevant option.
    """
    gains, places = np.asarray(relevance, dtype=np.float64), ranks(scores)
    if gains.shape != places.shape or gains.ndim != 2:
        raise DataError(f"scores and relevance must have one shape [N, O]; they have {places.shape} and {gains.shape}.")
    k = (gains > 0).sum(axis=1, keepdims=True)
    if not k.all():
        raise DataError(f"round {int(np.argmin(k))} has no relevant option, so its NDCG is not defined.")
    best = -np.sort(-gains, axis=1)
    discount = 1 / np.log2(np.arange(gains.shape[1]) + 2)
    found = np.where(places <= k, gains / np.log2(places + 1), 0).sum(axis=1)
    return float((found / (best * discount).sum(axis=1)).mean())


def auc(scores: Sequence[float] | ArrayLike, labels: Sequence[int] | ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted half.

    Args:
        scores: float[N], higher is more positive.
        labels: N times 0 or 1.

    Raises:
        DataError: a label is neither 0 nor 1, or one of them does not occur.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    positives = int((truth == 1).sum())
    negatives = int((truth == 0).sum())
    if values.shape != truth.shape or positives + negatives != truth.size or not positives or not negatives:
        raise DataError(f"AUC needs one label, 0 or 1, per score, and both of them; there are {values.size} scores, "
                        f"{positives} labels 1 and {negatives} labels 0.")
    if not np.isfinite(values).all():
        raise DataError("AUC needs finite scores; some are NaN or infinite.")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # mean rank of equal scores
    above = middle[place][truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def gqa_accuracy(predictions: Mapping[Any, str], answers: Mapping[Any, str]) -> float:
    """Share of questions whose answer is the true one once both are cleaned as VQA answers (as LAVIS does for GQA).

    Raises:
        DataError: questions without a prediction, or predictions for unknown ones.
    """
    _same_ids(predictions, answers)
    return sum(normalise(predictions[key]) == normalise(answers[key]) for key in answers) / len(answers)


def accuracy_by_group(right: Mapping[Any, bool], groups: Mapping[Any, Hashable]) -> dict[str, float]:
    """Accuracy over all questions and by group, for instance ScienceQA's subjects.

    Args:
        right: question id -> whether it was answered right.
        groups: question id -> its group.

    Returns:
        accuracy, and accuracy_<group> in the order in which groups appear.
    """
    _same_ids(right, groups)
    found: dict[str, list[bool]] = {"accuracy": []}
    for key, is_right in right.items():
        found["accuracy"].append(is_right)
        found.setdefault(f"accuracy_{groups[key]}".replace(" ", "_"), []).append(is_right)
    return {name: sum(group) / len(group) for name, group in found.items()}


def _same_ids(predictions: Mapping[Any, Any], truths: Mapping[Any, Any]) -> None:
    unknown = [key for key in predictions if key not in truths]
    bare = [key for key in truths if key not in predictions]
    if unknown or bare or not truths:
        raise DataError(f"every question needs one prediction: {len(unknown)} predictions are for unknown questions "
                        f"({unknown[:5]}), {len(bare)} of {len(truths)} questions have none ({bare[:5]}).")
