"""Writing text token by token: greedy, nucleus and beam search over a cache.

A decoder is anything with `step(tokens int64[M], rows int64[M] | None) -> logits float[M,V]`: it first keeps the
batch rows `rows` of its cache (in that order, with repetition), then appends one token per row. Beams are multiplied
after the first step, so the common beginning is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError
from lavis_lite.models.qformer import Cache, QFormer
from lavis_lite.models.text_tokens import SpecialIds


@dataclass(frozen=True)
class Decoding:
    """How text is written; lengths count new tokens, the end included."""

    max_new_tokens: int = 30
    min_new_tokens: int = 1
    num_beams: int = 1
    sample: bool = False
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError(f"generate: max_new_tokens ({self.max_new_tokens}) and num_beams ({self.num_beams}) must "
                              "be at least 1.")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"generate: temperature ({self.temperature}) must be above 0 and top_p ({self.top_p}) in "
                              "(0, 1].")


class Decoder(Protocol):
    """See the module's docstring."""

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Keep `rows` of the cache, append `tokens`, give the next tokens' logits."""
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


def decode(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding,
           device: torch.device) -> list[list[int]]:
    """Write one text per sample, starting from the begin token.

    Returns:
        Ids of the new tokens of each of the `batch` samples, the end left out.
    """
    if options.num_beams > 1 and not options.sample:
        return _beam_search(decoder, batch, special, options, device)
    tokens = torch.full((batch, 1), special.begin, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    for length in range(options.max_new_tokens):
        scores = _scores(decoder.step(tokens[:, -1], None), tokens, length, special, options)
        chosen = _sample(scores, options) if options.sample else scores.argmax(1)
        chosen = chosen.masked_fill(ended, special.end)
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        ended = ended | (chosen == special.end)
        if bool(ended.all()):
            break
    return [_until_end(row, special.end) for row in tokens[:, 1:].tolist()]


def _until_end(row: list[int], end: int) -> list[int]:
    return row[:row.index(end)] if end in row else row


def _scores(logits: Tensor, tokens: Tensor, length: int, special: SpecialIds, options: Decoding) -> Tensor:
    """Log-probabilities with the length and repetition rules applied: float[M,V]."""
    if options.repetition_penalty != 1.0:
        seen = logits.gather(1, tokens)
        weaker = torch.where(seen < 0, seen * options.repetition_penalty, seen / options.repetition_penalty)
        logits = logits.scatter(1, tokens, weaker)
    scores = logits.log_softmax(1)
    if length < options.min_new_tokens:
        scores[:, special.end] = -torch.inf
    return scores


def _sample(scores: Tensor, options: Decoding) -> Tensor:
    """Draw from the smallest set of tokens whose mass reaches top_p: float[M,V] -> int64[M]."""
    probabilities, order = (scores / options.temperature).softmax(1).sort(1, descending=True)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    return order.gather(1, torch.multinomial(probabilities, 1))[:, 0]


class _Finished:
    """The best finished texts of one sample, at most `width`."""

    def __init__(self, width: int, length_penalty: float) -> None:
        self.width, self.length_penalty = width, length_penalty
        self.texts: list[tuple[float, list[int]]] = []

    def add(self, log_probability: float, text: list[int], length: int) -> None:
        self.texts.append((log_probability / length ** self.length_penalty, text))
        self.texts = sorted(self.texts, key=lambda item: -item[0])[:self.width]

    def closed_to(self, log_probability: float, length: int) -> bool:
        """Whether a running text of this log-probability would not enter if it ended now (as transformers decides)."""
        if len(self.texts) < self.width:
            return False
        return self.texts[-1][0] >= log_probability / length ** self.length_penalty


def _beam_search(decoder: Decoder, batch: int, special: SpecialIds, options: Decoding,
                 device: torch.device) -> list[list[int]]:
    """Keep the num_beams best running texts per sample; a text that ends leaves the beam."""
    width = options.num_beams
    finished = [_Finished(width, options.length_penalty) for _ in range(batch)]
    tokens = torch.full((batch, 1), special.begin, device=device)
    totals = torch.zeros(batch, 1, device=device)
    rows: Tensor | None = None
    for length in range(1, options.max_new_tokens + 1):
        scores = _scores(decoder.step(tokens[:, -1], rows), tokens, length - 1, special, options)
        totals, tokens, rows = _extend(totals, scores, tokens, finished, special.end, width, length)
        if all(done.closed_to(best, length) for done, best in zip(finished, totals[:, 0].tolist(), strict=True)):
            break
    for sample, done in enumerate(finished):
        for total, text in zip(totals[sample].tolist(), tokens.unflatten(0, (batch, -1))[sample].tolist(), strict=True):
            if total > -float("inf"):
                done.add(total, text[1:], len(text) - 1)
    return [done.texts[0][1] for done in finished]


def _extend(totals: Tensor, scores: Tensor, tokens: Tensor, finished: list[_Finished], end: int, width: int,
            length: int) -> tuple[Tensor, Tensor, Tensor]:
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
        New totals float[B,K'], tokens int64[B*K',T+1], and rows int64[B*K'] of the cache they continue; K' is `width`,
        or all there are in the first steps of a wide beam.
    """
    batch, beams = totals.shape
    vocabulary = scores.shape[1]
    everything = (totals[:, :, None] + scores.unflatten(0, (batch, beams))).flatten(1)
    best, flat = everything.topk(min(2 * width, everything.shape[1]), dim=1)
    source = flat // vocabulary + torch.arange(batch, device=flat.device)[:, None] * beams
    token = flat % vocabulary
    texts = torch.cat([tokens[source.flatten()], token.flatten()[:, None]], 1).unflatten(0, best.shape)
    ends = token == end
    for sample, place in ends[:, :width].nonzero().tolist():
        if best[sample, place] > -torch.inf:
            finished[sample].add(float(best[sample, place]), texts[sample, place, 1:-1].tolist(), length)
    kept = best.masked_fill(ends, -torch.inf).topk(min(width, best.shape[1]), dim=1)
    chosen = texts.gather(1, kept.indices[:, :, None].expand(-1, -1, texts.shape[2]))
    return kept.values, chosen.flatten(0, 1), source.gather(1, kept.indices).flatten()
