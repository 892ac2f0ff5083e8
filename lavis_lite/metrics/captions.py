"""BLEU, ROUGE-L and CIDEr of captions as the official COCO evaluation computes them, without Java and much faster.

The formulas are those of the papers: Papineni 2002; Lin 2004; Vedantam 2015, the variant CIDEr-D without stemming. The
constants are those of COCO's evaluation code, so that scores agree to the last digits. Axes as in ngrams.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis_lite.errors import DataError, listed
from lavis_lite.metrics.ngrams import ORDER, Corpus, Counts, Floats, Ints
from lavis_lite.metrics.ptb import tokenize_all
from lavis_lite.metrics.rouge import rouge_l_scores

CIDER_SIGMA = 6.0
_log = logging.getLogger(__name__)
MOST_IDS = 20
"""ids in an error message"""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a whole set, and of every image in the order of `ids`.

    Attributes:
        ids: image ids, in the order of the predictions.
        scores: name -> score of the set: Bleu_1 ... Bleu_4, ROUGE_L, CIDEr (names of the official code).
        per_image: name -> float64[I]. The BLEU of a set is not the mean of these.
        empty: ids of predictions without any word; each scores 0.
    """

    ids: list[Any]
    scores: dict[str, float]
    per_image: dict[str, Floats]
    empty: list[Any]


@dataclass(frozen=True)
class TokenizedCaptions:
    """Tokenized predictions and references.

    Attributes:
        ids: I image ids.
        predictions: tokens of I captions.
        references: tokens of at least one caption for each of I images.
    """

    ids: list[Any]
    predictions: list[list[str]]
    references: list[list[list[str]]]

    def of(self, ids: Sequence[Any]) -> TokenizedCaptions:
        """The same for some of the images."""
        indices = {key: index for index, key in enumerate(self.ids)}
        chosen = [indices[key] for key in ids]
        return TokenizedCaptions(list(ids), [self.predictions[index] for index in chosen],
                                 [self.references[index] for index in chosen])


def caption_scores(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> CaptionScores:
    """Score one caption per image against its references; both are tokenized here.

    Args:
        predictions: id -> caption, in the image order of the official evaluation: a caption's tokens can depend on the
            next caption (see ptb.py).
        references: id -> at least one caption; ids without a prediction are ignored with a warning.

    Raises:
        DataError: no captions; predictions without references; or a caption that is not text.
    """
    return token_scores(tokenized(predictions, references))


def tokenized(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> TokenizedCaptions:
    """Tokens for `caption_scores`: all references are one stream of captions, all predictions another."""
    check(predictions, references)
    ids = list(predictions)
    stream = iter(tokenize_all(text for key in ids for text in references[key]))
    return TokenizedCaptions(ids, tokenize_all(predictions[key] for key in ids),
                             [[next(stream) for _ in references[key]] for key in ids])


def check(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    """Raise DataError if the captions cannot be scored."""
    if not predictions:
        raise DataError("there are no captions to score.")
    _stop_at([key for key in predictions if not references.get(key)], len(predictions),
             "captions have no reference")
    _stop_at([key for key, text in predictions.items() if not isinstance(text, str)], len(predictions),
             "predicted captions are not text")
    _stop_at([key for key in predictions if isinstance(references[key], str)
              or not all(isinstance(text, str) for text in references[key])], len(predictions),
             "images have references that are not a list of texts")
    silent = [key for key in references if key not in predictions]
    if silent:
        _log.warning("%d of %d images with references have no caption; ids: %s. The scores ignore them.", len(silent),
                     len(references), listed(silent, MOST_IDS))


def _stop_at(ids: list[Any], total: int, problem: str) -> None:
    if ids:
        raise DataError(f"{len(ids)} of {total} {problem}; ids: {listed(ids, MOST_IDS)}.")


def token_scores(captions: TokenizedCaptions) -> CaptionScores:
    """As `caption_scores`, from tokens."""
    predictions, references = captions.predictions, captions.references
    corpus = Corpus.of(predictions, references)
    bleu, each_bleu = bleu_scores(corpus)
    named: dict[str, Floats] = {f"Bleu_{n + 1}": each_bleu[n] for n in range(ORDER)}
    named["ROUGE_L"] = rouge_l_scores(corpus, predictions, references)
    named["CIDEr"] = cider_scores(corpus)
    scores = {name: float(values.mean()) for name, values in named.items()}
    scores |= {f"Bleu_{n + 1}": float(bleu[n]) for n in range(ORDER)}
    empty = [key for key, tokens in zip(captions.ids, predictions, strict=True) if not tokens]
    return CaptionScores(captions.ids, scores, named, empty)


# BLEU ---------------------------------------------------------------------------------------------------------------
def bleu_scores(corpus: Corpus) -> tuple[Floats, Floats]:
    """(float64[4] of the set, float64[4,I] of the images). Of two equally close references, the shorter one counts."""
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
    """int64[I]: n-grams of a prediction that a reference has, counted at most as often as in one reference."""
    best = np.zeros(len(counts.count), dtype=np.int64)
    np.maximum.at(best, counts.partner, counts.count[counts.shared])
    clipped = np.minimum(best, counts.count)[counts.own]
    return np.bincount(counts.sentence[counts.own], clipped, minlength=corpus.images).astype(np.int64)


def _closest_length(corpus: Corpus) -> Ints:
    """int64[I]: length of the reference nearest in length to the prediction; of two equally near ones, the shorter."""
    image, length = corpus.image[corpus.images:], corpus.length[corpus.images:]
    order = np.lexsort((length, np.abs(length - corpus.length[image]), image))
    _, first = np.unique(image[order], return_index=True)
    return length[order][first]


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
    idf = np.log(float(corpus.images)) - np.log(np.maximum(counts.documents, 1))
    weight = counts.count * idf[counts.gram]
    norm = np.sqrt(np.bincount(counts.sentence, weight ** 2, minlength=len(corpus.length)))
    theirs = weight[counts.shared]
    dots = np.minimum(weight[counts.partner], theirs) * theirs
    both = norm * norm[corpus.image]
    summed = np.bincount(counts.sentence[counts.shared], dots, minlength=len(corpus.length))
    return np.divide(summed, both, out=np.zeros_like(both), where=both != 0)
