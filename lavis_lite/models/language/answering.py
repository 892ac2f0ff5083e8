"""From what a language model has read to its answers: texts, their likelihood, a text piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models import decoding
from lavis_lite.models.beam_search import begin
from lavis_lite.models.decoding import Decoder, Decoding, Stops
from lavis_lite.models.language.rows import Row, Tokens, check_room, text_ids
from lavis_lite.models.language.scoring import PAIRS_AT_ONCE, score_table
from lavis_lite.models.language.segments import Segments, Vectors
from lavis_lite.models.language.tokens import before_stop
from lavis_lite.models.search import Search
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
    """Answers to B sequences: B * num_captions of them, samples in order. Scores are NaN unless `scored`."""
    rows = prompt_rows(model, sequences, options)
    if not rows:
        return []
    prefix = model.read_rows(rows) if scored else None
    ids = written(model, lambda some: model.read_rows([rows[number] for number in some]) if prefix is None else prefix,
                  text_ids(rows), options, joins=not scored)
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
        decoder, special = prepared(model, model.read_rows(rows), options)
    given = text_ids(rows) if options.penalise_prompt and model.room.joint else None
    steps = decoding.stream(decoder, special, options, model.home, given, stops_of(model, options))
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

    from lavis_lite.models.language.answer_text import pieces  # most answers are given whole

    by_words = bool(getattr(model.tokenizer.loaded, "clean_up_tokenization_spaces", False))
    yield from pieces(texts(), lambda: model.tokenizer.decode([ids], options.stop)[0], options.stop, by_words)


def written(model: LanguageModel, read: Callable[[Sequence[int]], Any], prompts: Sequence[Sequence[int]],
            options: Decoding, joins: bool = True) -> list[list[int]]:
    """Ids of the answers to all prompts, without their end.

    Args:
        model: what writes.
        read: numbers of prompts -> the state after these.
        prompts: ids read before each answer.
        options: how to write.
        joins: whether `read` takes some of the numbers; else all at once.
    """
    at_once = model.at_once if joins and can_join(model, options) else None
    count = len(prompts) if at_once is None or len(prompts) <= at_once else max(at_once // 4, 1)

    def search(some: Sequence[int]) -> Search:
        decoder, special = prepared(model, read(some), options)
        given = [prompts[number] for number in some] if options.penalise_prompt and model.room.joint else None
        seeds = None if options.seeds is None else tuple(options.seeds[number] for number in some)
        return begin(decoder, len(some), special, replace(options, seeds=seeds), model.home, given,
                     stops_of(model, options))

    options.check_batch(len(prompts))
    with torch.no_grad(), model.own_precision():
        groups = (range(len(prompts))[start:start + count] for start in range(0, len(prompts), count))
        return decoding.decode_in_turn(map(search, groups), at_once or len(prompts))


def reader(model: LanguageModel, soft_prompt: Tensor, prompts: Sequence[Sequence[int]],
           image_index: Tensor | None) -> Callable[[Sequence[int]], Any]:
    """What reads some of the prompts, neighbours of each other, and the soft prompts that they follow."""

    def read(numbers: Sequence[int]) -> Any:
        if len(numbers) == len(prompts):
            return model.read(soft_prompt, prompts, image_index)
        chosen = slice(numbers[0], numbers[-1] + 1)
        soft, index = soft_prompt[chosen], None
        if image_index is not None:
            used, index = image_index[chosen].unique(return_inverse=True)
            soft = soft_prompt[used]
        return model.read(soft, prompts[chosen], index)

    return read


def can_join(model: LanguageModel, options: Decoding) -> bool:
    """Whether answers may be at different lengths: masks and positions say so, and no logits processor looks."""
    return (model.takes_whole_masks and not options.logits_processors
            and options.num_beams <= int(model.model.config.vocab_size)
            and (model.room.joint or getattr(model, "has_distances", False)))


def prepared(model: LanguageModel, prefix: Any, options: Decoding) -> tuple[Decoder, SpecialIds]:
    """What `decode` steps, and the ids with a role."""
    beams = options.num_beams if not options.sample and options.num_beams <= model.model.config.vocab_size else 1
    decoder, begin = model.decoder_of(prefix, options.max_new_tokens, beams)
    if begin < 0 and options.lavis_lengths:  # a start token that nothing reads, but that is penalised
        start = model.model.config.bos_token_id
        begin = -1 if start is None else int(start)
    return decoder, SpecialIds(int(model.model.config.vocab_size), model.pad, begin, model.tokenizer.end)


def stops_of(model: LanguageModel, options: Decoding) -> Stops | None:
    """Whether the ids of a text spell one of the stop strings; None without such strings."""

    def stops(ids: Sequence[int]) -> bool:
        text = model.tokenizer.spelled(ids)
        return any(one in text for one in options.stop)

    return stops if options.stop else None


def prompt_rows(model: LanguageModel, sequences: Sequence[Segments], options: Decoding) -> list[Row]:
    """Rows to answer, if the model has room for them and their longest answers."""
    model.room.check_answer(options.max_new_tokens)
    rows = model.answer_rows(sequences)
    check_room(model.room, rows, [options.max_new_tokens] * len(rows))
    return rows


def wrote_end(model: LanguageModel, row: Sequence[int], options: Decoding) -> bool:
    """Whether the model itself ended an answer, neither a stop string nor the longest length."""
    text = model.tokenizer.spelled(row)
    return len(row) < options.max_new_tokens and before_stop(text, options.stop) == text


def no_losses(model: LanguageModel, sequences: Sequence[Segments]) -> Tensor:
    """The losses float[0] of sequences without a learned token left; gradients of zero reach all that trains.

    Every block runs, for other ranks may wait for it.
    """
    vectors = [segment.values[:0] for segments in sequences for segment in segments if isinstance(segment, Vectors)]
    return model.losses_of([[*vectors, Tokens([model.pad]), Tokens([model.pad], learned=True)]])[:0]
