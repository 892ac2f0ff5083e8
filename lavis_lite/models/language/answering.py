"""From what a language model has read to its answers: texts, their likelihood, a text piece by piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, shown
from lavis_lite.finite import check_finite
from lavis_lite.models.decoding import Decoder, Decoding, Stops, begin, decode_in_turn
from lavis_lite.models.decoding import stream as decoding_stream
from lavis_lite.models.language.rows import Row, Segments, Tokens, Vectors, check_room, tail, text_ids
from lavis_lite.models.language.tokens import before_stop
from lavis_lite.models.plain_text import as_text
from lavis_lite.models.search import Search
from lavis_lite.models.text_tokens import SpecialIds

if TYPE_CHECKING:
    from lavis_lite.models.language.contract import LanguageModel

Candidates = Sequence[str] | Sequence[Sequence[str]]
"""for all samples, or one list per sample"""
Normalise = Literal["sum", "mean"]
ImageIndex = Sequence[int] | Tensor
"""indices, as a list or int64[B]"""
Ending = Literal["end", "stop", "length"]
PAIRS_AT_ONCE = 64
"""pairs of a sample and a candidate that are scored together"""


@dataclass(frozen=True)
class Answer:
    """A text, how it came to its end, and its log-likelihood.

    Attributes:
        text: without spaces around, up to the first stop string.
        tokens: that were written, the end left out.
        ending: end (the model wrote its end token), stop (a stop string), or length (the most tokens).
        score: sum over its tokens, and its end token if it wrote one, by the model's own probabilities.
    """

    text: str
    tokens: int = 0
    ending: Ending = "end"
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
    found = [answer_of(model, row, options) for row in ids]
    if not scored:
        return found
    ended = [[*row, model.tokenizer.end] if answer.ending == "end" else row
             for row, answer in zip(ids, found, strict=True)]
    count = options.num_captions
    groups = [ended[start:start + count] for start in range(0, len(ended), count)]
    scores = score_table(model, lambda: prefix, groups, "sum", PAIRS_AT_ONCE).flatten().tolist()
    return [replace(answer, score=score) for answer, score in zip(found, scores, strict=True)]


def stream(model: LanguageModel, sequences: Sequence[Segments], options: Decoding) -> Generator[str, None, Answer]:
    """The answer to one sequence, piece by piece; returns it as a whole."""
    if len(sequences) != 1:
        raise ConfigError(f"a stream answers one sequence, not {len(sequences)}.")
    with torch.no_grad():
        rows = prompt_rows(model, sequences, options)
        decoder, special = prepared(model, model.read_rows(rows), options)
    given = text_ids(rows) if options.penalise_prompt and model.room.joint else None
    steps = decoding_stream(decoder, special, options, model.home, given, stops_of(model, options))
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
    yield from pieces(texts(), lambda: answer_of(model, ids, options).text, options.stop, by_words)
    return answer_of(model, ids, options)


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
        return decode_in_turn(map(search, groups), at_once or len(prompts))


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


def answer_of(model: LanguageModel, row: Sequence[int], options: Decoding) -> Answer:
    """The answer that ids without their end spell."""
    text, length = model.tokenizer.spelled(row), len(row)
    kept = before_stop(text, options.stop)
    ending: Ending = "stop" if kept != text else "length" if length == options.max_new_tokens else "end"
    return Answer(kept.strip(), length, ending)


def no_losses(model: LanguageModel, sequences: Sequence[Segments]) -> Tensor:
    """The losses float[0] of sequences without a learned token left; gradients of zero reach all that trains.

    Every block runs, for other ranks may wait for it.
    """
    vectors = [segment.values[:0] for segments in sequences for segment in segments if isinstance(segment, Vectors)]
    return model.losses_of([[*vectors, Tokens([model.pad]), Tokens([model.pad], learned=True)]])[:0]


# candidate answers ----------------------------------------------------------------------------------------------------
def candidate_lists(candidates: Candidates, batch: int) -> list[list[str]]:
    """One list of candidates per sample.

    Raises:
        ConfigError: an empty list, an empty candidate, or lists that are not one per sample.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or not candidates:
        raise ConfigError(f"candidates must be a list of answers, not {shown(candidates)}.")
    if not any(isinstance(own, (list, tuple)) for own in candidates):
        return [_filled(candidates, "the candidates")] * batch
    if len(candidates) != batch:
        raise ConfigError(f"{batch} samples came with {len(candidates)} lists of candidates; give one for each, or one "
                          "list of strings for all.")
    for sample, texts in enumerate(candidates):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ConfigError(f"sample {sample}: its candidates must be a list of answers, not {shown(texts)}.")
        if not texts:
            raise ConfigError(f"sample {sample} has no candidates.")
    return [_filled(texts, f"the candidates of sample {sample}") for sample, texts in enumerate(candidates)]


def _filled(candidates: Sequence[Any], whose: str) -> list[str]:
    """The candidates as strings; an empty one would be scored by how likely it is to write nothing."""
    texts = [as_text(text, "candidates") for text in candidates]
    empty = next((index for index, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise ConfigError(f"{whose}: number {empty} (counted from 0) is empty ({texts[empty]!r}); give every candidate "
                          "a text, or leave it out.")
    return texts


def tried(answers: Sequence[str], most: int | None) -> list[str]:
    """The first `most` of a list of answers (None: all); a warning says how many others cannot be given.

    Raises:
        ConfigError: none is tried.
    """
    if most is not None and most < 1:
        raise ConfigError(f"num_ans_candidates is {most}; at least one answer must be tried (null: all).")
    if most is not None and most < len(answers):
        warnings.warn(f"num_ans_candidates={most}: only the first {most} of the {len(answers)} answers of answer_list "
                      "are tried. Where another one is right, the answer is wrong. null (in Python None) tries all.",
                      stacklevel=2)
    return list(answers)[:most]


def check_image_index(image_index: ImageIndex, count: int) -> int:
    """The number of indices, checked.

    Args:
        image_index: B indices.
        count: U, the number of soft prompts.

    Raises:
        ConfigError: not a list of whole numbers from 0 to U - 1.
    """
    values = image_index.tolist() if isinstance(image_index, Tensor) else image_index
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)
             or not 0 <= value < count] if isinstance(values, Sequence) else [values]
    if wrong:
        raise ConfigError(f"image_index: {wrong[0]!r} is none of the {count} soft prompts; give each prompt its soft "
                          f"prompt's index, a whole number from 0 to {count - 1}.")
    return len(values)


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
    check_room(model.room, rows, longest)
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


def check_samples(soft_prompt: Tensor, width: int, texts: Sequence[Sequence[str]],
                  image_index: ImageIndex | None = None) -> None:
    """Refuse soft prompts of another shape than float[B,Q,width], and anything but B texts.

    Raises:
        ConfigError: says what came.
    """
    if soft_prompt.ndim != 3 or soft_prompt.shape[2] != width:
        raise ConfigError(f"a soft prompt has shape (B, Q, {width}) here, not {tuple(soft_prompt.shape)}.")
    samples = len(soft_prompt) if image_index is None else check_image_index(image_index, len(soft_prompt))
    for rows in texts:
        if isinstance(rows, str) or len(rows) != samples:
            count = "one string" if isinstance(rows, str) else f"{len(rows)} texts"
            raise ConfigError(f"{samples} samples came with {count}; give a list with one for each.")
