"""How texts are searched for: greedily, by sampling, or by beams; on the device, with one read per token.

A search holds the running texts of some samples, and what they have finished. A sample's
texts do not depend on the others: a finished beam search ignores later tokens, and sampling has a random stream per
sample. Finished samples leave when they are an eighth of the batch. Other searches may then join; their texts may have
other lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.errors import CheckpointError, ConfigError
from lavis_lite.finite import ADVICE
from lavis_lite.models.text_tokens import SpecialIds

if TYPE_CHECKING:
    from lavis_lite.models.decoding import Decoder, Decoding, Stops

LEAVING_SHARE = 0.125
"""of the samples in the batch must be finished before they leave it: each time the rest is copied"""
NOTHING = -1
"""stands where a shorter row has no token"""


@runtime_checkable
class PermutingDecoder(Protocol):
    """A decoder for which it costs less that rows change places with those of the same sample."""

    def permute(self, rows: Tensor) -> None:
        """Keep the rows int64[M], each of which continues the same sample as before."""


class Search(ABC):
    """Running texts of some samples; its length is the number of running samples.

    Args:
        decoder: what gives the next tokens' logits.
        batch: number of samples.
        special: ids with a role; below 0: no such id.
        options: how to write.
        device: where the decoder is.
        context: ids of each sample's prompt, which repetition_penalty then counts as written.
        stops: of texts that end without an end token.

    Attributes:
        ages: tokens that each running sample has written.
        tokens: int64[M,T], written so far in each of M running texts; NOTHING before those of younger samples.
    """

    def __init__(self, decoder: Decoder, batch: int, special: SpecialIds, options: Decoding, device: torch.device,
                 context: Sequence[Sequence[int]] | None = None, stops: Stops | None = None) -> None:
        self.decoder, self.special, self.options, self.device, self.stops = decoder, special, options, device, stops
        self.ages = [0] * batch
        self.tokens = torch.zeros(batch, 0, dtype=torch.long, device=device)
        self.context = _padded(context or [()] * batch, device)
        self.stopped: list[bool] = []  # of each text, before its next token; empty: none
        self._rows: Tensor | None = None
        self._in_sample = False
        self._unread: list[tuple[Tensor, list[int]]] = []  # which rows are not finite, and their ages

    def __len__(self) -> int:
        """How many samples are running."""
        return len(self.ages)

    @abstractmethod
    def step(self) -> None:
        """Write one token in every running text; samples that are over may leave.

        Raises:
            CheckpointError: a row's logits are NaN or infinite; it has no likeliest token.
        """

    @abstractmethod
    def texts(self) -> list[list[int]]:
        """Ids of all texts without their end, when none is running: num_captions of each sample, samples in order."""

    def join(self, other: Any) -> None:
        """Take the running samples of another search after one's own; both have made a step."""
        for search in (self, other):
            search.context = _rows_of(search.context, search._rows)
            if search._rows is not None:
                search.decoder.keep(search._rows)  # type: ignore[union-attr]  # only decoders that can
            search._rows = None
        self.tokens = _stacked([self.tokens, other.tokens])
        self.decoder.join(other.decoder, self.tokens.shape[1])  # type: ignore[attr-defined]  # only if it can
        self.context = _stacked([self.context, other.context])
        self.ages, self.stopped = self.ages + other.ages, self.stopped + other.stopped
        self._unread += other._unread

    def _choose(self, rows: Tensor, in_sample: bool = False) -> None:
        """Rows int64[M'] of the running texts that the next step continues, after what was chosen before."""
        self._rows, self._in_sample = rows if self._rows is None else self._rows[rows], in_sample

    def _staying(self, over: list[bool]) -> list[int]:
        """The samples that are not over; all of them, unless enough are, or one has no room for another token."""
        outgrown = max(self.ages) == self.options.max_new_tokens
        if not outgrown and sum(over) < max(LEAVING_SHARE * len(over), 1):
            return list(range(len(over)))
        return [number for number, done in enumerate(over) if not done]

    def _continue(self, staying: list[int], rows: Tensor) -> None:
        """Keep some samples, and these rows int64[M'] of the running texts."""
        self.ages = [self.ages[number] for number in staying]
        self.tokens = self.tokens[rows, self.tokens.shape[1] - max(self.ages, default=0):]
        self._choose(rows)

    def _scores(self) -> Tensor:
        """Log-probabilities of the next tokens float[M,V], with the rules for length and repetition."""
        rows, self._rows = self._rows, None
        self.context = _rows_of(self.context, rows)
        if rows is not None and self._in_sample and isinstance(self.decoder, PermutingDecoder):
            self.decoder.permute(rows)
            rows = None
        logits = self.decoder.step(self._written(begin=True)[:, -1].contiguous(), rows)
        self._unread.append((~logits.amax(1).isfinite(), self._per_row(self.ages)))
        return self._ruled(logits)

    def _per_row(self, values: list[Any]) -> list[Any]:
        """A value of each sample, for every text of it."""
        each = len(self.tokens) // max(len(values), 1)
        return [value for value in values for _ in range(each)]

    def _written(self, begin: bool) -> Tensor:
        """The tokens after the begin token, if there is one or `begin`."""
        if self.special.begin < 0 and not begin:
            return self.tokens
        return F.pad(self.tokens, (1, 0), value=self.special.begin)

    def _ruled(self, logits: Tensor) -> Tensor:
        options, end, written = self.options, self.special.end, self._written(begin=False)
        beams = options.num_beams > 1 and not options.sample
        scores = logits.log_softmax(1) if beams else logits  # where transformers applies the penalty
        if options.repetition_penalty != 1.0:
            scores = self._weakened(scores, torch.cat([self.context, written], 1))
        if not beams:
            scores = scores.log_softmax(1)
        young = [age < options.min_new_tokens for age in self.ages]
        if all(young):
            scores[:, end] = -torch.inf
        elif any(young):
            scores[:, end] = scores[:, end].masked_fill(self._on_device(self._per_row(young)), -torch.inf)
        for process in options.logits_processors:
            scores, shape = process(written, scores), scores.shape
            if scores.shape != shape:
                raise ConfigError(f"generate: a logits processor returned scores of shape {tuple(scores.shape)}; they "
                                  f"must keep their shape {tuple(shape)}.")
        if any(self.stopped):  # the end has the likelihood 1: every search ends such a text alike, its score stays
            over = torch.full_like(scores, -torch.inf)
            over[:, end] = 0.0
            scores = torch.where(self._on_device(self.stopped)[:, None], over, scores)
        return scores

    def _weakened(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Scores with the repetition penalty on tokens int64[M,T], each once."""
        vocabulary, penalty = scores.shape[1], self.options.repetition_penalty
        if self.context.shape[1] or min(self.ages) < max(self.ages):  # a column for what fills shorter rows
            ids, scores = ids.masked_fill(ids < 0, vocabulary), F.pad(scores, (0, 1))
        seen = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))[:, :vocabulary]

    def _on_device(self, values: list[Any]) -> Tensor:
        return torch.tensor(values).to(self.device, non_blocking=True)

    def _read(self, *values: Tensor) -> list[list[int]]:
        """Whole numbers from the device, each tensor flat, and whether all scores were numbers: one read.

        Raises:
            CheckpointError: a row's logits were NaN or infinite.
        """
        flat = [part.flatten().long() for part in (*values, *(flags for flags, _ in self._unread))]
        numbers = iter(torch.cat(flat).tolist())
        found = [list(islice(numbers, len(part))) for part in flat]
        for broken, (_, ages) in zip(found[len(values):], self._unread, strict=True):
            if any(broken):
                row = broken.index(1)
                raise CheckpointError(f"generate: the model's scores are NaN or infinite at token {ages[row] + 1}, in "
                                      f"row {row} of the batch. {ADVICE}")
        self._unread = []
        return found[:len(values)]


class Draws(Search):
    """Greedy search or sampling; each text is a sample of its own after the first step.

    Attributes:
        written: ids of every text so far, running or over.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        count, sampling = self.options.num_captions, self.options.sample
        self.written: list[list[int]] = [[] for _ in range(len(self) * count)]
        self.uniform = _random_streams(len(self), self.options).to(self.device) if sampling else None
        self._running, self._over = list(self.written), [False] * len(self.written)

    def step(self) -> None:
        """See `Search.step`."""
        scores, count = self._scores(), self.options.num_captions
        if len(self._running) > len(self):  # the first step, with several texts of each sample
            rows = torch.arange(len(self), device=self.device).repeat_interleave(count)
            scores, self.tokens, self.ages = scores[rows], self.tokens[rows], [0] * len(rows)
            self._choose(rows)
        chosen = scores.argmax(1)
        if self.uniform is not None:
            chosen = _sample(scores, self.options, self.uniform.gather(1, self._on_device(self.ages)[:, None])[:, 0])
        self.tokens = torch.cat([self.tokens, chosen[:, None]], 1)
        self.ages = [age + 1 for age in self.ages]
        for row, token in enumerate(self._read(chosen)[0]):
            self._write(row, token)
        staying = self._staying(self._over)
        if len(staying) < len(self):
            self._leave(staying)

    def texts(self) -> list[list[int]]:
        """See `Search.texts`."""
        return self.written

    def join(self, other: Draws) -> None:
        """See `Search.join`."""
        super().join(other)
        self.written, self._running = self.written + other.written, self._running + other._running
        self._over = self._over + other._over
        if self.uniform is not None and other.uniform is not None:
            self.uniform = torch.cat([self.uniform, other.uniform])

    def _write(self, row: int, token: int) -> None:
        text, stops = self._running[row], self.stops
        if not self._over[row]:
            self._over[row] = token == self.special.end or self.ages[row] == self.options.max_new_tokens
            if token != self.special.end:
                text.append(token)
                self._over[row] = self._over[row] or (stops is not None and stops(text))

    def _leave(self, staying: list[int]) -> None:
        rows = self._on_device(staying).long()
        self._running = [self._running[row] for row in staying]
        self._over = [self._over[row] for row in staying]
        self.uniform = None if self.uniform is None else self.uniform[rows]
        self._continue(staying, rows)


def _random_streams(batch: int, options: Decoding) -> Tensor:
    """Uniform numbers float64[B*num_captions,max_new_tokens], each sample's from a generator of its own."""
    seeds: Sequence[int] = torch.randint(2**62, (batch,)).numpy().tolist() if options.seeds is None else options.seeds
    options.check_batch(batch)
    shape = (options.num_captions, options.max_new_tokens)
    return torch.cat([torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
                      for seed in seeds])


def _sample(scores: Tensor, options: Decoding, uniform: Tensor) -> Tensor:
    """Draw from the smallest set of tokens with at least the mass top_p: float[M,V], float64[M] -> int64[M]."""
    below = scores.double() - scores.amax(1, keepdim=True)  # else the smallest temperatures make infinities
    probabilities, order = (below / options.temperature).softmax(1).sort(1, descending=True)
    before = probabilities.cumsum(1) - probabilities
    cumulative = probabilities.masked_fill(before >= options.top_p, 0.0).cumsum(1)
    index = torch.searchsorted(cumulative, cumulative[:, -1:] * uniform[:, None], right=True)
    return order.gather(1, index.clamp(max=scores.shape[1] - 1))[:, 0]


def _padded(context: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids of prompts as int64[B,L], NOTHING after shorter ones."""
    width = max(map(len, context), default=0)
    return torch.tensor([[*row, *[NOTHING] * (width - len(row))] for row in context],
                        dtype=torch.long).reshape(len(context), width).to(device)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows of int64[M,T], NOTHING before shorter ones."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (width - part.shape[1], 0), value=NOTHING) for part in parts])


def _rows_of(values: Tensor, rows: Tensor | None) -> Tensor:
    """The batch rows `rows`; None: all as they are."""
    return values if rows is None else values.index_select(0, rows)
