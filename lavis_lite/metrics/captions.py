"""BLEU, ROUGE-L and CIDEr of captions as the official COCO evaluation computes them, without Java and much faster.

The formulas are those of the papers (Papineni 2002; Lin 2004; Vedantam 2015, the variant CIDEr-D without its stemming)
with the constants of COCO's evaluation code, so that scores agree to the last digits. n-grams of all captions are
numbered once, per order, and every count is a sorted array; no dictionary per caption.

Axes: I images, S sentences (the I predictions first, then every reference), n the order of n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_lite.errors import DataError
from lavis_lite.metrics.ptb import tokenize_all

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDER = 4
"""longest n-gram"""
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
MOST_IDS = 20
"""ids that an error names"""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a whole set, and of every image in the order of `ids`.

    Attributes:
        ids: image ids, as the predictions have them.
        scores: name -> score of the set: Bleu_1 ... Bleu_4, ROUGE_L, CIDEr (names of the official code).
        per_image: name -> float64[I]. BLEU of a set is not the mean of these.
        empty: ids of predictions without any word; each scores 0.
    """

    ids: list[Any]
    scores: dict[str, float]
    per_image: dict[str, Floats]
    empty: list[Any]


@dataclass(frozen=True)
class TokenizedCaptions:
    """Predictions and references as the metrics read them.

    Attributes:
        ids: of I images.
        predictions: tokens of I captions.
        references: tokens of at least one caption for each of I images.
    """

    ids: list[Any]
    predictions: list[list[str]]
    references: list[list[list[str]]]

    def of(self, ids: Sequence[Any]) -> TokenizedCaptions:
        """The same for some of the images."""
        places = {key: place for place, key in enumerate(self.ids)}
        chosen = [places[key] for key in ids]
        return TokenizedCaptions(list(ids), [self.predictions[place] for place in chosen],
                                 [self.references[place] for place in chosen])


def caption_scores(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> CaptionScores:
    """Score one caption per image against its references; both are tokenized here.

    Args:
        predictions: id -> caption. Their order is the order of images in the official evaluation: a caption's tokens
            can hang on the caption after it (see ptb.py).
        references: id -> at least one caption; ids without a prediction are not looked at.

    Raises:
        DataError: nothing to score, predictions without references (all of them told at once), or no text.
    """
    return token_scores(tokenized(predictions, references))


def tokenized(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> TokenizedCaptions:
    """Tokens of what `caption_scores` takes: all references are one stream of captions, all predictions another."""
    check(predictions, references)
    ids = list(predictions)
    stream = iter(tokenize_all(text for key in ids for text in references[key]))
    return TokenizedCaptions(ids, tokenize_all(predictions[key] for key in ids),
                             [[next(stream) for _ in references[key]] for key in ids])


def check(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    """Raise DataError where captions cannot be scored."""
    if not predictions:
        raise DataError("there are no captions to score.")
    _stop_at([key for key in predictions if not references.get(key)], len(predictions),
             "captions have no reference to score them by")
    _stop_at([key for key, text in predictions.items() if not isinstance(text, str)], len(predictions),
             "predicted captions are no text")
    _stop_at([key for key in predictions if isinstance(references[key], str)
              or not all(isinstance(text, str) for text in references[key])], len(predictions),
             "images have references that are no list of texts")


def _stop_at(ids: list[Any], total: int, fault: str) -> None:
    if ids:
        shown = ", ".join(map(str, ids[:MOST_IDS])) + (", ..." if len(ids) > MOST_IDS else "")
        raise DataError(f"{len(ids)} of {total} {fault}; ids: {shown}.")


def token_scores(captions: TokenizedCaptions) -> CaptionScores:
    """As `caption_scores`, from tokens."""
    predictions, references = captions.predictions, captions.references
    corpus = Corpus.of(predictions, references)
    bleu, each_bleu = bleu_scores(corpus)
    named: dict[str, Floats] = {f"Bleu_{n + 1}": each_bleu[n] for n in range(ORDER)}
    named["ROUGE_L"] = rouge_l_scores(predictions, references)
    named["CIDEr"] = cider_scores(corpus)
    scores = {name: float(values.mean()) for name, values in named.items()}
    scores |= {f"Bleu_{n + 1}": float(bleu[n]) for n in range(ORDER)}
    empty = [key for key, tokens in zip(captions.ids, predictions, strict=True) if not tokens]
    return CaptionScores(captions.ids, scores, named, empty)


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order stands in each sentence.

    Three arrays of equal length, sorted by sentence, then n-gram.
    """

    sentence: Ints
    gram: Ints
    count: Ints
    grams: int
    """number of different n-grams"""


@dataclass(frozen=True)
class Corpus:
    """All sentences of an evaluation.

    Attributes:
        images: I.
        image: int64[S], whose prediction or reference a sentence is.
        length: int64[S], tokens.
        counts: by order, n = 1 ... 4.
    """

    images: int
    image: Ints
    length: Ints
    counts: list[Counts]

    @classmethod
    def of(cls, predictions: list[list[str]], references: list[list[list[str]]]) -> Corpus:
        """Number and count all n-grams."""
        sentences = [_words(one) for one in predictions] + [_words(one) for refs in references for one in refs]
        image = np.concatenate([np.arange(len(predictions)),
                                np.repeat(np.arange(len(references)), [len(refs) for refs in references])])
        length = np.array([len(one) for one in sentences], dtype=np.int64)
        return cls(len(predictions), image, length, _count(sentences, length))


def _words(tokens: list[str]) -> list[str]:
    """Tokens as the official BLEU and CIDEr see them: "22 3/4" is one token for ROUGE-L, two words for these."""
    return [word for token in tokens for word in token.split()] if any(map(_has_space, tokens)) else tokens


def _has_space(token: str) -> bool:
    return "\u00a0" in token


def _count(sentences: list[list[str]], length: Ints) -> list[Counts]:
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for one in sentences for word in one], dtype=np.int64)
    sentence = np.repeat(np.arange(len(sentences)), length)
    counts, grams, total = [], words, len(numbers)
    for order in range(1, ORDER + 1):
        if order > 1:  # an n-gram is its first n-1 tokens and one more; it may not run into the next sentence
            inside = sentence[:len(grams) - 1] == sentence[order - 1:]
            pairs = grams[:-1] * max(len(numbers), 1) + words[order - 1:]
            unique, found = np.unique(pairs, return_inverse=True)
            grams, total = found.astype(np.int64), len(unique)
            keys = sentence[:len(grams)][inside] * max(total, 1) + grams[inside]
        else:
            keys = sentence * max(total, 1) + grams
        kept, amount = np.unique(keys, return_counts=True)
        counts.append(Counts(kept // max(total, 1), kept % max(total, 1), amount.astype(np.int64), total))
    return counts


# BLEU ---------------------------------------------------------------------------------------------------------------
def bleu_scores(corpus: Corpus) -> tuple[Floats, Floats]:
    """(float64[4] of the set, float64[4,I] of the images), reference length: the closest, the shorter of two."""
    own = corpus.length[:corpus.images]
    correct = np.stack([_correct(corpus, counts) for counts in corpus.counts])
    guess = np.stack([np.maximum(own - n, 0) for n in range(ORDER)])
    closest = _closest_length(corpus)
    whole = _bleu(correct.sum(1, keepdims=True), guess.sum(1, keepdims=True), own.sum(keepdims=True),
                  closest.sum(keepdims=True))
    return whole[:, 0], _bleu(correct, guess, own, closest)


def _bleu(correct: Ints, guess: Ints, length: Ints, reference: Ints) -> Floats:
    """int64[4,I] counts and int64[I] lengths -> float64[4,I]; the tiny numbers are COCO's, against division by zero."""
    precision = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=0)
    score = precision ** (1.0 / np.arange(1, ORDER + 1))[:, None]
    ratio = (length + 1e-15) / (reference + 1e-9)
    penalty = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    return np.asarray(score * penalty)


def _correct(corpus: Corpus, counts: Counts) -> Ints:
    """int64[I]: n-grams of a prediction that some reference has, each at most as often as a reference has it."""
    place, held, most, count = _shared(corpus, counts)
    best = np.zeros(held, dtype=np.int64)
    np.maximum.at(best, place, most)
    own = counts.sentence < corpus.images
    return np.bincount(counts.sentence[own], np.minimum(best, count), minlength=corpus.images).astype(np.int64)


def _shared(corpus: Corpus, counts: Counts) -> tuple[Ints, int, Ints, Ints]:
    """What is known of the reference entries whose n-gram their image's prediction has.

    Returns:
        Its place among the prediction entries, number of prediction entries, the reference's count, all predictions'
        counts.
    """
    _, place, entries = _pairs(corpus, counts)
    own = counts.sentence < corpus.images
    return place, int(own.sum()), counts.count[entries], counts.count[own]


def _pairs(corpus: Corpus, counts: Counts) -> tuple[Ints, Ints, Ints]:
    """(sentence of the reference, place among the prediction entries, place among all entries) of shared n-grams."""
    own = counts.sentence < corpus.images
    base = max(counts.grams, 1)
    keys = counts.sentence[own] * base + counts.gram[own]
    entries = np.flatnonzero(~own)
    wanted = corpus.image[counts.sentence[entries]] * base + counts.gram[entries]
    place = np.searchsorted(keys, wanted)
    hit = np.zeros(len(wanted), dtype=bool)
    inside = place < len(keys)
    hit[inside] = keys[place[inside]] == wanted[inside]
    return counts.sentence[entries[hit]], place[hit], entries[hit]


def _closest_length(corpus: Corpus) -> Ints:
    """int64[I]: length of the reference nearest in length to the prediction, the shorter where two are as near."""
    image, length = corpus.image[corpus.images:], corpus.length[corpus.images:]
    order = np.lexsort((length, np.abs(length - corpus.length[image]), image))
    _, first = np.unique(image[order], return_index=True)
    return length[order][first]


# ROUGE-L ------------------------------------------------------------------------------------------------------------
def rouge_l_scores(predictions: list[list[str]], references: list[list[list[str]]]) -> Floats:
    """float64[I]: F of the longest common subsequence, best precision and best recall over the references."""
    return np.array([_rouge_l(own, refs) for own, refs in zip(predictions, references, strict=True)])


def _rouge_l(own: list[str], references: list[list[str]]) -> float:
    own = own or [""]  # the official code splits at spaces, and an empty caption has one empty word
    masks: dict[str, int] = {}
    for place, word in enumerate(own):
        masks[word] = masks.get(word, 0) | 1 << place
    common = [(_lcs(masks, len(own), reference or [""]), max(len(reference), 1)) for reference in references]
    precision = max(length for length, _ in common) / len(own)
    recall = max(length / size for length, size in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA ** 2) * precision * recall / (recall + ROUGE_BETA ** 2 * precision)


def _lcs(masks: Mapping[str, int], length: int, other: list[str]) -> int:
    """Length of the longest common subsequence, bits of an integer standing for the first text's places (Hyyrö 2004).

    Args:
        masks: word -> bits of its places in the first text.
        length: of the first text.
        other: the second text.
    """
    full = (1 << length) - 1
    row = full
    for word in other:
        mask = masks.get(word)
        if mask is not None:
            hit = row & mask
            row = (row + hit) | (row - hit)
    return length - (row & full).bit_count()


# CIDEr --------------------------------------------------------------------------------------------------------------
def cider_scores(corpus: Corpus) -> Floats:
    """float64[I]: tf-idf cosine with clipped counts and a Gaussian penalty on the length.

    Mean over n and references, times 10. Documents are the images' reference sets.
    """
    total = np.zeros(len(corpus.length))
    for counts in corpus.counts:
        total += _cosine(corpus, counts)
    # the official code measures a caption's length in bigrams
    bigrams = np.maximum(corpus.length - 1, 0)
    delta = bigrams[corpus.image] - bigrams
    total *= np.exp(-(delta ** 2) / (2 * CIDER_SIGMA ** 2))
    image = corpus.image[corpus.images:]
    summed = np.bincount(image, total[corpus.images:], minlength=corpus.images)
    return np.asarray(summed / ORDER / np.bincount(image, minlength=corpus.images) * 10.0)


def _cosine(corpus: Corpus, counts: Counts) -> Floats:
    """float64[S]: a reference's clipped cosine with its image's prediction; 0 for predictions."""
    weight = counts.count * (np.log(float(corpus.images)) - _log_documents(corpus, counts)[counts.gram])
    norm = np.sqrt(np.bincount(counts.sentence, weight ** 2, minlength=len(corpus.length)))
    sentence, place, entries = _pairs(corpus, counts)
    own = weight[counts.sentence < corpus.images]
    dots = np.minimum(own[place], weight[entries]) * weight[entries]
    both = norm * norm[corpus.image]
    summed = np.bincount(sentence, dots, minlength=len(corpus.length))
    return np.divide(summed, both, out=np.zeros_like(both), where=both != 0)


def _log_documents(corpus: Corpus, counts: Counts) -> Floats:
    """float64[grams]: log of the number of images with the n-gram in a reference; 0 where there is none."""
    entries = counts.sentence >= corpus.images
    base = max(counts.grams, 1)
    keys = np.unique(corpus.image[counts.sentence[entries]] * base + counts.gram[entries])
    documents = np.bincount(keys % base, minlength=counts.grams)
    return np.log(np.maximum(documents, 1).astype(np.float64))
