"""ROUGE-L of captions (Lin 2004): F of the longest common subsequence, best precision and recall over the references.

Bits of an integer represent a prediction's words (Hyyrö 2004). All pairs of prediction and reference advance together,
by one shared word each. Pairs that do not fit into 63 bits, or have tokens of several words, are scored one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lavis_lite.metrics.ngrams import Corpus, Floats, Ints

BETA = 1.2
MOST_BITS = 63


def rouge_l_scores(corpus: Corpus, predictions: list[list[str]], references: list[list[list[str]]]) -> Floats:
    """float64[I].

    Args:
        corpus: `Corpus.of` the predictions and references.
        predictions, references: tokens.
    """
    length = np.maximum(corpus.length, 1)  # the official code splits at spaces: an empty caption has one empty word
    own, theirs, image = length[:corpus.images], length[corpus.images:], corpus.image[corpus.images:]
    if not len(image):
        return np.zeros(0)
    common = _common(corpus)
    common[(corpus.length[corpus.images:] == 0) & (corpus.length[image] == 0)] = 1
    first = np.flatnonzero(np.diff(image, prepend=-1))
    precision = np.maximum.reduceat(common, first) / own
    recall = np.maximum.reduceat(common / theirs, first)
    scores = _f(precision, recall)
    for position in np.flatnonzero(corpus.spaced | (own > MOST_BITS)):
        scores[position] = one_rouge_l(predictions[position], references[position])
    return scores


def _f(precision: Floats, recall: Floats) -> Floats:
    above = (1 + BETA ** 2) * precision * recall
    below = recall + BETA ** 2 * precision
    return np.divide(above, below, out=np.zeros_like(above), where=(precision > 0) & (recall > 0))


def _common(corpus: Corpus) -> Ints:
    """int64[references]: length of the longest common subsequence with the image's prediction."""
    counts, start = corpus.counts[0], np.cumsum(corpus.length) - corpus.length
    sentence = np.repeat(np.arange(len(corpus.length)), corpus.length)
    written = int(corpus.length[:corpus.images].sum())
    positions = (np.arange(written) - start[sentence[:written]]) % MOST_BITS
    bits = np.zeros(len(counts.count), dtype=np.uint64)
    np.bitwise_or.at(bits, corpus.entry[:written], np.uint64(1) << positions.astype(np.uint64))
    seen = np.zeros_like(bits)
    seen[counts.shared] = bits[counts.partner]  # positions of a reference's word in the prediction
    masks = seen[corpus.entry[written:]]
    hits = np.flatnonzero(masks)
    return _walk(corpus, sentence[written:][hits] - corpus.images, masks[hits])


def _walk(corpus: Corpus, pair: Ints, masks: NDArray[np.uint64]) -> Ints:
    """The same, from the reference of each shared word (in order) and the word's positions in the prediction."""
    own = np.minimum(corpus.length[corpus.image[corpus.images:]], MOST_BITS).astype(np.uint64)
    full = (np.uint64(1) << own) - np.uint64(1)
    row = full.copy()
    rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank)).tolist()
    for first, end in zip([0, *ends], ends, strict=False):  # each pair's first shared word, then the second, ...
        chosen = order[first:end]
        state = row[pair[chosen]]
        hit = state & masks[chosen]
        row[pair[chosen]] = (state + hit) | (state - hit)
    left = np.unpackbits((row & full).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
    return own.astype(np.int64) - left


def one_rouge_l(own: list[str], references: list[list[str]]) -> float:
    """The score of one image, from tokens."""
    own = own or [""]
    masks: dict[str, int] = {}
    for position, word in enumerate(own):
        masks[word] = masks.get(word, 0) | 1 << position
    common = [(_lcs(masks, len(own), reference or [""]), max(len(reference), 1)) for reference in references]
    precision = max(length for length, _ in common) / len(own)
    recall = max(length / size for length, size in common)
    return float(_f(np.array(precision), np.array(recall)))


def _lcs(masks: Mapping[str, int], length: int, other: list[str]) -> int:
    """Length of the longest common subsequence; bits of an integer are positions in the first text (Hyyrö 2004).

    Args:
        masks: word -> bits of its positions in the first text.
        length: of the first text.
        other: the second text.
    """
    full = (1 << length) - 1
    row = full
    for mask in filter(None, map(masks.get, other)):
        hit = row & mask
        row = (row + hit) | (row - hit)
    return length - (row & full).bit_count()
