"""Recall@k of image-text retrieval: pure functions over scores or over ordered candidates.

Terms: a *query* searches among *candidates*. "Text retrieval" (prefix `txt`, as in LAVIS) searches texts with an image;
"image retrieval" (`img`) searches images with a text.

Ties: equal scores keep the order of the candidates' indices, as in a stable sort. A model that gives every pair the
same score is therefore at chance, not at the top. NaN counts as the lowest score.

All recalls are fractions in [0, 1] (LAVIS prints percents). A query with several right answers counts as found when any
of them is among the first k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from lavis_lite.errors import DataError

Positives = Sequence[int | Sequence[int]] | Mapping[int, int | Sequence[int]]
"""Right candidates of each query: query index -> candidate index or several (LAVIS' img2txt and txt2img)."""

KS = (1, 5, 10)
MISSED = torch.iinfo(torch.int64).max
"""Rank of a query without a right candidate."""


def as_lists(positives: Positives) -> list[list[int]]:
    """`positives` with one list per query, in the order of the query indices.

    Raises:
        DataError: an index is missing.
    """
    items = positives.items() if isinstance(positives, Mapping) else enumerate(positives)
    by_query = {int(query): [found] if isinstance(found, int) else [int(one) for one in found]
                for query, found in items}
    if missing := set(range(len(by_query))) - by_query.keys():
        raise DataError(f"the right candidates of query {min(missing)} are missing; queries have the numbers from 0 on "
                        "without gaps (img2txt and txt2img of the data set).")
    return [by_query[query] for query in range(len(by_query))]


def without_nan(scores: Tensor) -> Tensor:
    """float32 scores in which NaN is below everything else."""
    scores = scores.float()
    return torch.where(scores.isnan(), float("-inf"), scores)


def ranks_from_scores(scores: Tensor, positives: Positives) -> Tensor:
    """Number of candidates before the best right one.

    Args:
        scores: float[N, M], a row per query.
        positives: the right candidates of each query; a query without any has the rank MISSED.

    Returns:
        int64[N]; 0 means the right candidate came first.
    """
    scores = without_nan(scores)
    ranks = torch.full((len(scores),), MISSED)
    for query, found in enumerate(as_lists(positives)):
        if found:
            row, best = scores[query], _best(scores[query], found)
            ahead = (row > row[best]).sum() + (row[:best] == row[best]).sum()
            ranks[query] = ahead
    return ranks


def _best(row: Tensor, found: Sequence[int]) -> int:
    """The candidate of `found` that a stable descending sort would put first."""
    return max(sorted(found), key=lambda candidate: float(row[candidate]))


def ranks_from_candidates(candidates: Tensor, positives: Positives) -> Tensor:
    """Position of the first right candidate in each query's ordered list.

    Args:
        candidates: int64[N, K], best first, by index.
        positives: the right candidates of each query.

    Returns:
        int64[N]; MISSED if none of the K is right.
    """
    ranks = torch.full((len(candidates),), MISSED)
    for query, found in enumerate(as_lists(positives)):
        hits = torch.isin(candidates[query], torch.tensor(found, dtype=candidates.dtype)).nonzero()
        if len(hits):
            ranks[query] = hits[0, 0]
    return ranks


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of queries with a rank below k, in [0, 1].

    Raises:
        ValueError: there is no query.
    """
    if not len(ranks):
        raise ValueError("recall of no queries is not defined")
    return float((ranks < k).double().mean())


def recalls(txt_ranks: Tensor, img_ranks: Tensor, ks: Iterable[int] = KS) -> dict[str, float]:
    """Both directions as LAVIS names them.

    Args:
        txt_ranks: int64[N], rank of the best right text of each image.
        img_ranks: int64[M], rank of the right image of each text.
        ks: the k of recall@k.

    Returns:
        txt_r1, txt_r5, txt_r10, txt_r_mean, the same for img, and r_mean, the mean of both directions.
    """
    scores: dict[str, float] = {}
    for name, ranks in (("txt", txt_ranks), ("img", img_ranks)):
        found = {f"{name}_r{k}": recall_at(ranks, k) for k in ks}
        scores |= found | {f"{name}_r_mean": sum(found.values()) / len(found)}
    return scores | {"r_mean": (scores["txt_r_mean"] + scores["img_r_mean"]) / 2}


def chance(k: int, candidates: int, right: int = 1) -> float:
    """Expected recall@k of a random order: 1 - C(candidates - right, k) / C(candidates, k)."""
    k = min(k, candidates)
    return 1.0 - comb(candidates - right, k) / comb(candidates, k)


def mean_chance(k: int, candidates: int, positives: Positives) -> float:
    """`chance` averaged over the queries, which may have different numbers of right candidates."""
    counts = [len(set(found)) for found in as_lists(positives)]
    return sum(chance(k, candidates, count) for count in counts) / len(counts)
