"""From what a language model has read to its answers: texts, their likelihood, a text piece by piece, candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.finite import check_finite
from lavis_lite.models import decoding
from lavis_lite.models.answer_text import StopAtText, before_stop, pieces
from lavis_lite.models.decoding import Decoder, Decoding
from lavis_lite.models.language.candidates import PAIRS_AT_ONCE, Candidates, Normalise, candidate_lists
from lavis_lite.models.language.rows import Row, Tokens, size, tail
from lavis_lite.models.language.segments import Segments, Vectors
from lavis_lite.models.text_tokens import SpecialIds

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel


@dataclass(frozen=True)
class Answer:
    """A text and its log-likelihood.

    Attributes:
        text: without spaces around, up to the first stop string.
        score: sum over its tokens, and its end token if it wrote one, by the model's own probabilities.
    """

    text: str
    score: float = float("nan")


@torch.no_grad()
def answers(model: LanguageModel, sequences: Sequence[Segments], options: Decoding, scored: bool) -> list[Answer]:
    """Answers to B sequences: B * num_captions of them, samples in order; without scores if they are not asked for."""
    rows = prompt_rows(model, sequences, options)
    if not rows:
        return []
    prefix = model.read_rows(rows)
    ids = written(model, prefix, contexts(rows), options)
    texts = [Answer(text) for text in model.tokenizer.decode(ids, options.stop)]
    if not scored:
        return texts
    ended = [[*row, model.tokenizer.end] if wrote_end(model, row, options) else row for row in ids]
    count = options.num_captions
    groups = [ended[start:start + count] for start in range(0, len(ended), count)]
    scores = score_table(model, lambda: prefix, groups, "sum", PAIRS_AT_ONCE).flatten().tolist()
    return [replace(answer, score=score) for answer, score in zip(texts, scores, strict=True)]


def stream(model: LanguageModel, sequences: Sequence[Segments], options: Decoding) -> Iterator[str]:
    """The answer to one sequence, piece by piece."""
    if len(sequences) != 1:
        raise ConfigError(f"a stream answers one sequence, not {len(sequences)}.")
    with torch.no_grad():
        rows = prompt_rows(model, sequences, options)
        decoder, special, options = prepared(model, model.read_rows(rows), options)
    given = contexts(rows) if options.penalise_prompt and model.room.joint else None
    steps = decoding.stream(decoder, special, options, model.home, given)
    ids: list[int] = []

    def texts() -> Iterator[str]:
        nonlocal ids
        while True:
            with torch.no_grad(), model.own_precision():  # left while the caller has a piece
                found = next(steps, None)
            if found is None:
                return
            ids = found
            yield model.tokenizer.spelled(ids)

    by_words = bool(getattr(model.tokenizer.loaded, "clean_up_tokenization_spaces", False))
    yield from pieces(texts(), lambda: model.tokenizer.decode([ids], options.stop)[0], options.stop, by_words)


def written(model: LanguageModel, prefix: Any, prompts: Sequence[Sequence[int]], options: Decoding) -> list[list[int]]:
    """Ids of the answers that follow a state, without their end; `prompts` are the ids read before each."""
    with torch.no_grad(), model.own_precision():
        decoder, special, options = prepared(model, prefix, options)
        given = prompts if options.penalise_prompt and model.room.joint else None
        return decoding.decode(decoder, len(prompts), special, options, model.home, given)


def prepared(model: LanguageModel, prefix: Any, options: Decoding) -> tuple[Decoder, SpecialIds, Decoding]:
    """What `decode` steps, the ids with a role, and options whose stop strings have become a logits processor."""
    decoder, begin = model.decoder_of(prefix, options.max_new_tokens)
    if begin < 0 and options.lavis_lengths:  # a start token that nothing reads, but that is penalised
        start = model.model.config.bos_token_id
        begin = -1 if start is None else int(start)
    special = SpecialIds(int(model.model.config.vocab_size), model.pad, begin, model.tokenizer.end)
    if options.stop:
        stops = StopAtText(model.tokenizer.spelled, options.stop, special.end)
        options = replace(options, logits_processors=(*options.logits_processors, stops))
    return decoder, special, options


def prompt_rows(model: LanguageModel, sequences: Sequence[Segments], options: Decoding) -> list[Row]:
    """Rows to answer, if the model has room for them and their longest answers."""
    model.room.check_answer(options.max_new_tokens)
    rows = model.answer_rows(sequences)
    check_room(model, rows, [options.max_new_tokens] * len(rows))
    return rows


def check_room(model: LanguageModel, rows: Sequence[Row], longest: Sequence[int]) -> None:
    """Refuse rows that are too long, or empty.

    Args:
        model: that reads them.
        rows: B of them.
        longest: tokens that may follow each.

    Raises:
        TextTooLongError: rows without room for what follows.
        DataError: a row without a token or a vector.
    """
    for number, row in enumerate(rows):
        if not size(row):
            raise DataError(f"row {number} has neither text nor vectors, so there is nothing to answer.")
    ids = contexts(rows)
    vectors = [size(row) - len(own) for row, own in zip(rows, ids, strict=True)]
    model.room.check_prompts(ids, vectors, longest)


def contexts(rows: Sequence[Row]) -> list[list[int]]:
    """Ids of each row's texts."""
    return [[id_ for part in row if isinstance(part, Tokens) for id_ in part.ids] for row in rows]


def wrote_end(model: LanguageModel, row: Sequence[int], options: Decoding) -> bool:
    """Whether the model itself ended an answer, neither a stop string nor the longest length."""
    text = model.tokenizer.spelled(row)
    return len(row) < options.max_new_tokens and before_stop(text, options.stop) == text


# candidates -----------------------------------------------------------------------------------------------------------
def scoring_rows(model: LanguageModel, sequences: Sequence[Segments],
                 candidates: Candidates) -> tuple[list[Row], list[list[list[int]]]]:
    """Rows of B sequences and ids of each one's candidates, if the model has room for them.

    Raises:
        ConfigError: see `LanguageModel.score`.
        TextTooLongError: likewise.
    """
    rows = model.answer_rows(sequences)
    texts = candidate_rows(model, [tail(segments) for segments in sequences], candidates)
    longest = [max(map(len, own)) for own in texts]
    model.room.check_candidates(longest)
    check_room(model, rows, longest)
    return rows, texts


def candidate_rows(model: LanguageModel, prompts: Sequence[str],
                   candidates: Candidates) -> list[list[list[int]]]:
    """Ids of the candidates of B prompts.

    Raises:
        ConfigError: see `score`; or a candidate without any token.
    """
    texts = [model.candidate_texts(prompt, own) for prompt, own in
             zip(prompts, candidate_lists(candidates, len(prompts)), strict=True)]
    different = list(dict.fromkeys(text for own in texts for text in own))
    ids = dict(zip(different, model.tokenizer.targets(different, end=model.family.candidate_end), strict=True))
    rows = [[ids[text] for text in own] for own in texts]
    for sample, own in enumerate(rows):
        if not all(own):
            raise ConfigError(f"sample {sample}: a candidate without any token cannot be scored.")
    return rows


def score_table(model: LanguageModel, read: Callable[[], Any], rows: list[list[list[int]]], normalise: Normalise,
                pairs: int) -> Tensor:
    """Scores float[B,C] of each row's candidates after what `read` reads."""
    pairs_of = [(sample, index) for sample, texts in enumerate(rows) for index in range(len(texts))]
    scores = torch.full((len(rows), max(map(len, rows), default=0)), -torch.inf, device=model.home)
    if not rows:
        return scores
    prefix = read()
    for start in range(0, len(pairs_of), pairs):
        some = pairs_of[start:start + pairs]
        found = model.candidate_scores(prefix, [sample for sample, _ in some],
                                       [rows[sample][index] for sample, index in some], normalise)
        check_finite(found, partial(_not_finite, some))
        scores[[sample for sample, _ in some], [index for _, index in some]] = found.to(scores.dtype)
    return scores


def _not_finite(pairs: Sequence[tuple[int, int]], row: int) -> str:
    return f"score: the likelihoods of sample {pairs[row][0]} are NaN or infinite."


def no_losses(model: LanguageModel, sequences: Sequence[Segments]) -> Tensor:
    """The losses float[0] of sequences without a learned token left; gradients of zero reach all that trains."""
    vectors = [segment.values for segments in sequences for segment in segments if isinstance(segment, Vectors)]
    trained = [value for value in model.parameters() if value.requires_grad]
    nothing = [value.to(model.home).flatten()[:0] for value in [*vectors, *trained]]
    return torch.cat([torch.zeros(0, device=model.home), *nothing])
