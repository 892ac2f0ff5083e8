"""The words and n-grams of all captions of an evaluation, numbered and counted once, in sorted arrays.

Axes: I images, S sentences (the I predictions first, then every reference), n the order of n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDER = 4
"""longest n-gram"""


@dataclass(frozen=True)
class Counts:
    """Counts of each n-gram of one order in each sentence: entries, sorted by n-gram, then sentence.

    Attributes:
        sentence, gram, count: int64[E].
        documents: int64[n-grams], number of images with the n-gram in a reference.
        own: entries of predictions.
        shared: entries of references with an n-gram of their image's prediction.
        partner: for each of `shared`, that prediction's entry.
    """

    sentence: Ints
    gram: Ints
    count: Ints
    documents: Ints
    own: Ints
    shared: Ints
    partner: Ints


@dataclass(frozen=True)
class Corpus:
    """All sentences of an evaluation.

    Attributes:
        images: I.
        image: int64[S], the image of each sentence.
        length: int64[S], words.
        counts: by order, n = 1 ... 4.
        entry: int64[words of all sentences], the entry of counts[0] that a word belongs to.
        spaced: bool[I], whether a token of the image's sentences is several words.
    """

    images: int
    image: Ints
    length: Ints
    counts: list[Counts]
    entry: Ints
    spaced: NDArray[np.bool_]

    @classmethod
    def of(cls, predictions: list[list[str]], references: list[list[list[str]]]) -> Corpus:
        """Number and count all n-grams."""
        sentences = [*predictions, *chain.from_iterable(references)]
        image = np.concatenate([np.arange(len(predictions)),
                                np.repeat(np.arange(len(references)), [len(refs) for refs in references])])
        flat = list(chain.from_iterable(sentences))
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        words = np.fromiter(map(numbers.__getitem__, flat), np.int64, len(flat))
        length = np.fromiter(map(len, sentences), np.int64, len(sentences))
        words, length, parted = _parted(words, length, sentences, numbers)
        spaced = np.zeros(len(predictions), dtype=bool)
        spaced[image[parted]] = True
        counts, entry = _count_all(words, length, image, len(predictions))
        return cls(len(predictions), image, length, counts, entry, spaced)


def _parted(words: Ints, length: Ints, sentences: list[list[str]], numbers: dict[str, int]) -> tuple[Ints, Ints, Ints]:
    """Words and lengths for the official BLEU and CIDEr, and the sentences with tokens of several words.

    "22 3/4" is one token for ROUGE-L and two words for BLEU and CIDEr.

    Args:
        words: int64[words of all sentences], their numbers.
        length: int64[S].
        sentences: tokens.
        numbers: token -> number; new words are added.
    """
    joined = [number for word, number in numbers.items() if "\u00a0" in word]
    ends = np.cumsum(length)
    found = np.unique(np.searchsorted(ends, np.flatnonzero(np.isin(words, joined)), side="right"))
    pieces, at, length = [], 0, length.copy()
    for position in found.tolist():
        split = " ".join(sentences[position]).split()
        pieces += [words[at:ends[position] - length[position]],
                   np.array([numbers.setdefault(word, len(numbers)) for word in split], dtype=np.int64)]
        at, length[position] = ends[position], len(split)
    return np.concatenate([*pieces, words[at:]]), length, found


def _count_all(words: Ints, length: Ints, image: Ints, images: int) -> tuple[list[Counts], Ints]:
    sentence = np.repeat(np.arange(len(length)), length)
    different = int(words.max(initial=0)) + 1
    position, grams = np.arange(len(words)), words
    counts, entries = [], []
    for order in range(ORDER):
        if order:  # an n-gram is its first n-1 tokens and one more; it may not run into the next sentence
            before_end = position[:np.searchsorted(position, len(words) - order)]
            inside = np.flatnonzero(sentence[before_end + order] == sentence[before_end])
            position = position[inside]
            grams = grams[inside] * different + words[position + order]
        grams, entry, found = _count(grams, sentence[position], image, images)
        counts.append(found)
        entries.append(entry)
    return counts, entries[0]


def _sorted(codes: Ints) -> tuple[Ints, Ints]:
    """(sorted codes, their former positions), equal codes in order; packed into one number if possible, for speed."""
    bits = max(len(codes) - 1, 0).bit_length()
    if not len(codes) or int(codes.max()).bit_length() + bits > 62:
        order = np.argsort(codes, kind="stable")
        return codes[order], order
    packed = np.sort(codes << bits | np.arange(len(codes)))
    return packed >> bits, packed & ((1 << bits) - 1)


def _count(codes: Ints, sentence: Ints, image: Ints, images: int) -> tuple[Ints, Ints, Counts]:
    """(dense number of each n-gram's code, the entry it belongs to, all entries)."""
    codes, order = _sorted(codes)
    sentence = sentence[order]
    is_new = np.ones(len(codes), dtype=bool)
    is_new[1:] = codes[1:] != codes[:-1]
    dense = np.cumsum(is_new) - 1
    grams = np.empty_like(dense)
    grams[order] = dense
    is_new[1:] |= sentence[1:] != sentence[:-1]
    start = np.flatnonzero(is_new)
    count = np.diff(start, append=len(codes))
    entry = np.empty_like(dense)
    entry[order] = np.cumsum(is_new) - 1
    sentence, gram = sentence[start], dense[start]
    reference = sentence >= images
    own, others = np.flatnonzero(~reference), np.flatnonzero(reference)
    keys = gram * max(images, 1) + image[sentence]  # they grow within predictions, and within references
    wanted = keys[others]
    predicted = keys[own]
    first = np.ones(len(others), dtype=bool)
    first[1:] = wanted[1:] != wanted[:-1]
    documents = np.bincount(gram[others[first]], minlength=int(dense[-1]) + 1 if len(dense) else 0)
    in_prediction = np.zeros(len(documents), dtype=bool)
    in_prediction[gram[own]] = True
    others = others[in_prediction[gram[others]]]
    wanted = keys[others]
    position = np.minimum(np.searchsorted(predicted, wanted), max(len(own) - 1, 0))
    hit = predicted[position] == wanted if len(own) else np.zeros(len(others), dtype=bool)
    return grams, entry, Counts(sentence, gram, count, documents, own, others[hit], own[position[hit]])
