"""Text token by token: greedy, nucleus and beam search over a cache.

A decoder is anything with `step(tokens int64[M], rows int64[M] | None) -> logits float[M,V]`: it first keeps the
batch rows `rows` of its cache (in that order, with repetition), then appends one token per row. Beams and repeated
samples are multiplied after the first step, so the common beginning is computed once.

A batch gives the same texts as its members one by one. A finished beam search ignores later tokens, and sampling has a
random stream per sample. Finished samples leave the batch when they are an eighth of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.finite import check_finite
from lavis_lite.models.qformer.model import Cache, QFormer
from lavis_lite.models.text_tokens import SpecialIds

LEAVING_SHARE = 0.125
"""of the samples in the batch must be finished before they leave it: each time the rest is copied"""

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""as in transformers: (new tokens so far int64[M,T], scores float[M,V]) -> scores float[M,V]"""


@dataclass(frozen=True)
class Decoding:
    """How text is written; lengths count new tokens, the end included.

    num_captions: texts per sample: the best of the beams, or as many draws.
    seeds: one number per sample for its random stream when sampling; None: drawn from torch's generator.
    lavis_lengths: reproduce the texts of LAVIS' beam search (transformers 4.33). It counts the start token in the
        length of texts that reach max_new_tokens, in the decision to stop, and for repetition_penalty.
    penalise_prompt: repetition_penalty also looks at the tokens of the prompt, as transformers does for decoder-only
        models; LAVIS looks at written tokens only.
    stop: a language model's text ends before the first of these strings. Its tokens up to there are written.
    logits_processors: applied in order to the log-probabilities of every step, after the penalty and the lengths; those
        of transformers fit.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 1
    num_beams: int = 1
    sample: bool = False
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    num_captions: int = 1
    seeds: tuple[int, ...] | None = None
    lavis_lengths: bool = False
    penalise_prompt: bool = False
    logits_processors: Sequence[LogitsProcessor] = ()
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: the first value out of range, with the range.
        """
        for name in ("max_new_tokens", "min_new_tokens", "num_beams", "num_captions"):
            value: float = getattr(self, name)
            least = 0 if name == "min_new_tokens" else 1
            _require(isinstance(value, int) and value >= least, name, value, f"a whole number, at least {least}")
        _require(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", self.min_new_tokens,
                f"at most max_new_tokens, which is {self.max_new_tokens} (LAVIS: min_length and max_length)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (all tokens)")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "above 0; 1 changes nothing")
        _require(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "a finite number")
        stop: object = self.stop
        _require(isinstance(stop, tuple | list) and all(isinstance(text, str) and text for text in stop), "stop", stop,
                "a tuple or list of texts that are not empty")
        _require(self.sample or self.num_captions <= self.num_beams, "num_captions", self.num_captions,
                f"at most num_beams, which is {self.num_beams}; sampling (use_nucleus_sampling) has no such limit")

    def check_batch(self, batch: int) -> None:
        """Raise ConfigError unless there is one seed per sample, if there are any."""
        if self.seeds is not None and len(self.seeds) != batch:
            raise ConfigError(f"generate: {len(self.seeds)} seeds for {batch} samples; give one for each.")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"generate: {name} is {value!r}, but must be {wanted}.")


class Decoder(Protocol):
    """A model with a cache that continues M texts by one token at a time."""

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Keep the `rows` of the cache, append tokens int64[M], return the logits of the next ones, float[M,V]."""
        ...


class QFormerDecoder:
    """A Q-Former that continues after its queries (multi-modal causal pattern)."""

    def __init__(self, qformer: QFormer, cache: Cache) -> None:
        self.qformer, self.cache = qformer, cache

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> float[M,V]."""
        if rows is not None:
            self.cache = self.cache.select(rows)
        output = self.qformer(text_ids=tokens[:, None], cache=self.cache, use_cache=True)
        self.cache = output.cache
        logits: Tensor = self.qformer.logits(output.text[:, -1])
        return logits.float()


def decode(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
           context: Sequence[Sequence[int]] | None = None) -> list[list[int]]:
    """Write texts, starting from the begin token (special.begin; below 0: the decoder needs none).

    Args:
        decoder: what gives the next tokens' logits.
        batch: number of samples.
        special: ids with a role.
        options: how to write.
        device: where the decoder is.
        context: ids of each sample's prompt, which repetition_penalty then counts as written; None: it does not.

    Returns:
        Ids of the new tokens, the end left out: num_captions texts of each of the `batch` samples, samples in order.

    Raises:
        ConfigError: not one seed per sample.
    """
    if options.num_beams > 1 and not options.sample:
        return _beam_search(decoder, batch, special, options, device, _padded(context, batch, device))
    texts: list[list[int]] = [[]] * (batch * options.num_captions)
    for _ in _steps(decoder, batch, special, options, device, context, texts):
        pass
    return texts


def stream(decoder: Decoder, special: SpecialIds, options: Decoding, device: torch.device,
           context: Sequence[Sequence[int]] | None = None) -> Iterator[list[int]]:
    """As `decode` for one sample, token by token: after each one all ids so far, the end left out.

    Raises:
        ConfigError: several beams or texts, of which only the end shows which one is returned.
    """
    if options.num_captions > 1 or (options.num_beams > 1 and not options.sample):
        raise ConfigError("a stream writes one text, greedily or by sampling: set num_beams=1 and num_captions=1.")
    for tokens in _steps(decoder, 1, special, options, device, context, [[]]):
        row = tokens[0, 1:].tolist()
        yield row[:row.index(special.end)] if special.end in row else row


def _steps(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
           context: Sequence[Sequence[int]] | None, texts: list[list[int]]) -> Iterator[Tensor]:
    """Greedy search or sampling; `texts` gets what is finished. After each step the running tokens int64[M,1+T]."""
    prompt_ids = _padded(context, batch, device)
    uniform = _random_streams(batch, options).to(device) if options.sample else None
    index = torch.arange(batch, device=device)  # of each row among the texts
    rows: Tensor | None = None
    tokens = torch.full((batch, 1), special.begin, device=device)
    for length in range(options.max_new_tokens):
        logits, prompt_ids = decoder.step(tokens[:, -1], rows), _rows_of(prompt_ids, rows)
        scores = _scores(logits, tokens, length, special, options, prompt_ids)
        rows = None
        if length == 0 and options.num_captions > 1:
            rows = index.repeat_interleave(options.num_captions)
            scores, tokens, index = scores[rows], tokens[rows], torch.arange(len(texts), device=device)
        chosen = scores.argmax(1) if uniform is None else _sample(scores, options, uniform[index, length])
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        yield tokens
        ended = (tokens[:, 1:] == special.end).any(1)
        kept = _kept(ended.tolist())
        if kept is not None:
            _put(texts, index, tokens, special.end)
            left = torch.tensor(kept, dtype=torch.long, device=device)
            rows = left if rows is None else rows[left]
            index, tokens = index[left], tokens[left]
        if not len(index):
            break
    _put(texts, index, tokens, special.end)


def _kept(ended: list[bool]) -> list[int] | None:
    """Indices of the unfinished samples, if enough are finished to make the batch smaller; None: all stay."""
    if sum(ended) < max(LEAVING_SHARE * len(ended), 1):
        return None
    return [index for index, over in enumerate(ended) if not over]


def _put(texts: list[list[int]], index: Tensor, tokens: Tensor, end: int) -> None:
    """Write rows int64[M,1+T] to the texts index int64[M], each up to its end."""
    for at, row in zip(index.tolist(), tokens[:, 1:].tolist(), strict=True):
        texts[at] = row[:row.index(end)] if end in row else row


def _random_streams(batch: int, options: Decoding) -> Tensor:
    """Uniform numbers float64[B*num_captions,max_new_tokens], each sample's from a generator of its own."""
    seeds = options.seeds
    if seeds is None:
        seeds = tuple(int(torch.randint(2**62, ())) for _ in range(batch))
    options.check_batch(batch)
    shape = (options.num_captions, options.max_new_tokens)
    return torch.cat([torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
                      for seed in seeds])


def _padded(context: Sequence[Sequence[int]] | None, batch: int, device: torch.device) -> Tensor:
    """Ids of prompts as int64[B,L], -1 behind shorter ones; no columns without a context."""
    rows = context or [()] * batch
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows],
                        dtype=torch.long).reshape(batch, width).to(device)


def _rows_of(values: Tensor, rows: Tensor | None) -> Tensor:
    """The batch rows `rows`; None: all as they are."""
    return values if rows is None else values.index_select(0, rows)


def _weakened(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Scores with the repetition penalty on tokens int64[M,T], each once."""
    seen = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def _scores(logits: Tensor, tokens: Tensor, length: int, special: SpecialIds, options: Decoding,
            context: Tensor) -> Tensor:
    """Log-probabilities with the length and repetition rules applied: float[M,V].

    Raises:
        CheckpointError: a row's logits are NaN or infinite; it has no likeliest token.
    """
    check_finite(logits.amax(1), lambda row: f"generate: the model's scores are NaN or infinite at token {length + 1}, "
                                             f"in row {row} of the batch.")
    beams = options.num_beams > 1 and not options.sample
    scores = logits.log_softmax(1) if beams else logits  # where transformers applies the penalty
    written = tokens if special.begin >= 0 else tokens[:, 1:]
    if options.repetition_penalty != 1.0 and context.shape[1]:
        extra = scores.shape[1]  # a column for what fills shorter prompts
        ids = torch.cat([context.masked_fill(context < 0, extra), written], 1)
        scores = _weakened(F.pad(scores, (0, 1)), ids, options.repetition_penalty)[:, :extra]
    elif options.repetition_penalty != 1.0 and written.shape[1]:
        scores = _weakened(scores, written, options.repetition_penalty)
    if not beams:
        scores = scores.log_softmax(1)
    if length < options.min_new_tokens:
        scores[:, special.end] = -torch.inf
    for process in options.logits_processors:
        scores, shape = process(written, scores), scores.shape
        if scores.shape != shape:
            raise ConfigError(f"generate: a logits processor returned scores of shape {tuple(scores.shape)}; they must "
                              f"keep their shape {tuple(shape)}.")
    return scores


def _sample(scores: Tensor, options: Decoding, uniform: Tensor) -> Tensor:
    """Draw from the smallest set of tokens whose mass reaches top_p: float[M,V], float64[M] -> int64[M]."""
    probabilities, order = (scores.double() / options.temperature).softmax(1).sort(1, descending=True)
    before = probabilities.cumsum(1) - probabilities
    cumulative = probabilities.masked_fill(before >= options.top_p, 0.0).cumsum(1)
    index = torch.searchsorted(cumulative, cumulative[:, -1:] * uniform[:, None], right=True)
    return order.gather(1, index.clamp(max=scores.shape[1] - 1))[:, 0]


class _FinishedTexts:
    """The best finished texts of one sample, at most `width`."""

    def __init__(self, width: int, length_penalty: float) -> None:
        self.width, self.length_penalty = width, length_penalty
        self.texts: list[tuple[float, list[int]]] = []
        self.closed = False

    def add(self, log_probability: float, text: list[int], length: int) -> None:
        if self.closed:
            return
        self.texts.append((log_probability / length ** self.length_penalty, text))
        self.texts = sorted(self.texts, key=lambda item: -item[0])[:self.width]

    def close_to(self, log_probability: float, length: int) -> None:
        """Close for good if a running text of this log-probability would not enter by ending now (as transformers)."""
        full = len(self.texts) == self.width
        self.closed = self.closed or (full and self.texts[-1][0] >= log_probability / length ** self.length_penalty)


def _beam_search(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
                 context: Tensor) -> list[list[int]]:
    """Keep the num_beams best running texts per sample; a text that ends leaves the beam."""
    width, start = options.num_beams, int(options.lavis_lengths)
    finished = [_FinishedTexts(width, options.length_penalty) for _ in range(batch)]
    running = finished
    tokens = torch.full((batch, 1), special.begin, device=device)
    totals = torch.zeros(batch, 1, device=device)
    rows: Tensor | None = None
    for length in range(1, options.max_new_tokens + 1):
        logits, context = decoder.step(tokens[:, -1], rows), _rows_of(context, rows)
        scores = _scores(logits, tokens, length - 1, special, options, context)
        best, totals, tokens, rows = _extend(totals, scores, tokens, running, special.end, width, length)
        for done, hope in zip(running, (best if start else totals[:, 0]).tolist(), strict=True):
            done.close_to(hope, length + start)
        kept = _kept([done.closed for done in running])
        if kept is not None:
            running = [running[sample] for sample in kept]
            totals, tokens, rows = _keep(torch.tensor(kept, dtype=torch.long, device=device), totals, tokens, rows)
        if not running:
            break
    beams = tokens.unflatten(0, totals.shape).tolist()
    for done, sums, written in zip(running, totals.tolist(), beams, strict=True):
        for total, text in zip(sums, written, strict=True):
            if total > -float("inf"):
                done.add(total, text[1:], len(text) - 1 + start)
    return [text for done in finished for _, text in done.texts[:options.num_captions]]


def _keep(samples: Tensor, totals: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The beams of int64[B'] samples: totals float[B,K], tokens int64[B*K,T] and rows int64[B*K] of these alone."""
    chosen = torch.arange(totals.numel(), device=samples.device).reshape(totals.shape)[samples].flatten()
    return totals[samples], tokens[chosen], rows[chosen]


def _extend(totals: Tensor, scores: Tensor, tokens: Tensor, finished: list[_FinishedTexts], end: int, width: int,
            length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of beam search.

    Args:
        totals: float[B,K] log-probabilities of the running texts.
        scores: float[B*K,V] of their next tokens.
        tokens: int64[B*K,T] running texts.
        finished: where texts that end now go.
        end: id of the end token.
        width: running texts kept.
        length: new tokens after this step.

    Returns:
        The best continuation's log-probability float[B], ended or not. New totals float[B,K'], tokens int64[B*K',T+1],
        and rows int64[B*K'] of the cache that they continue. K' is `width`, or fewer in the first steps of a wide beam.
    """
    batch, beams = totals.shape
    vocabulary = scores.shape[1]
    everything = (totals[:, :, None] + scores.unflatten(0, (batch, beams))).flatten(1)
    best, flat = everything.topk(min(2 * width, everything.shape[1]), dim=1)
    source = flat // vocabulary + torch.arange(batch, device=flat.device)[:, None] * beams
    token = flat % vocabulary
    texts = torch.cat([tokens[source.flatten()], token.flatten()[:, None]], 1).unflatten(0, best.shape)
    ends = token == end
    for sample, index in ends[:, :width].nonzero().tolist():
        if best[sample, index] > -torch.inf:
            finished[sample].add(float(best[sample, index]), texts[sample, index, 1:-1].tolist(), length)
    kept = best.masked_fill(ends, -torch.inf).topk(min(width, best.shape[1]), dim=1)
    chosen = texts.gather(1, kept.indices[:, :, None].expand(-1, -1, texts.shape[2]))
    return best[:, 0], kept.values, chosen.flatten(0, 1), source.gather(1, kept.indices).flatten()
