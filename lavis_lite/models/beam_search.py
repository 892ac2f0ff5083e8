"""Beam search: what is ended stays on the device until the end."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_lite.models.search import NOTHING, Search

BLOCK = 64
"""words of the vocabulary that `best_of` looks at together"""


class Beams(Search):
    """The num_beams likeliest running texts of each sample; a text that ends leaves the beam.

    Attributes:
        totals: float[B,K], log-probabilities of the running texts.
        closed: bool[B]: no running text would still enter the best ended ones.
        scores, ended: float64[B,K] and int64[B,K,max_new_tokens], the best ended texts, NOTHING before shorter ones.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        batch, width, most = len(self), self.options.num_beams, self.options.max_new_tokens
        self.totals = torch.zeros(batch, 1, device=self.device)
        self.closed = torch.zeros(batch, dtype=torch.bool, device=self.device)
        self.scores = torch.full((batch, width), -torch.inf, dtype=torch.float64, device=self.device)
        self.ended = torch.full((batch, width, most), NOTHING, device=self.device)
        self._samples, self._numbers = batch, list(range(batch))
        self._gone: list[tuple[list[int], Tensor, Tensor]] = []

    def step(self) -> None:
        """See `Search.step`."""
        scores, start = self._scores(), int(self.options.lavis_lengths)
        self.ages = [age + 1 for age in self.ages]
        best = self._extend(scores)
        hope = (best if start else self.totals[:, :1]).double() / self._powers(start)
        worst = self.scores[:, -1:]
        self.closed = self.closed | ((worst > -torch.inf) & (worst >= hope))[:, 0]
        last = [age == self.options.max_new_tokens for age in self.ages]
        if any(last):
            self._end(last)
        staying = self._staying(self._over(last))
        if len(staying) < len(self):
            self._leave(staying)

    def texts(self) -> list[list[int]]:
        """See `Search.texts`."""
        numbers = [number for some, _, _ in self._gone for number in some]
        if not numbers:
            return []
        scores = torch.cat([one for _, one, _ in self._gone])
        ended = torch.cat([one for *_, one in self._gone])
        (_, width, most), count = ended.shape, self.options.num_captions
        is_text, ids = self._read(scores > -torch.inf, ended)
        texts = _texts_of(ids, most)
        found = {number: list(compress(texts[at:at + count], is_text[at:at + count]))
                 for number, at in zip(numbers, range(0, len(texts), width), strict=True)}
        return [text for number in sorted(found) for text in found[number]]

    def join(self, other: Beams) -> None:
        """See `Search.join`."""
        super().join(other)
        for name in ("totals", "closed", "scores", "ended"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        first = self._samples
        self._samples += other._samples
        self._numbers += [first + number for number in other._numbers]
        self._gone += [([first + number for number in some], scores, ended) for some, scores, ended in other._gone]

    def _powers(self, more: int) -> Any:
        """What log-probabilities of texts are divided by, `more` tokens longer than the running: float or [B,1]."""
        powers = [(age + more) ** self.options.length_penalty for age in self.ages]
        if len(set(powers)) == 1:
            return powers[0]
        return self._on_device(powers).double()[:, None]

    def _extend(self, scores: Tensor) -> Tensor:
        """The best continuations of float[B*K,V], those that end now to the ended texts.

        Returns:
            The best continuation's log-probability float[B,1], ended or not.
        """
        (batch, beams), width = self.totals.shape, self.options.num_beams
        more, tokens = best_of(scores, min(2 * width, scores.shape[1]))  # no text has more among the best of all
        everything = (self.totals.flatten()[:, None] + more).view(batch, -1)
        best, flat = everything.topk(min(2 * width, everything.shape[1]), dim=1)
        source = flat // more.shape[1] + torch.arange(batch, device=flat.device)[:, None] * beams
        token = tokens.view(batch, -1).gather(1, flat)
        ends = token == self.special.end
        self._note(best[:, :width].masked_fill(~ends[:, :width], -torch.inf), source[:, :width], self._powers(0))
        kept = best.masked_fill(ends, -torch.inf).topk(min(width, best.shape[1]), dim=1)
        rows = source.gather(1, kept.indices).flatten()
        self.tokens = torch.cat([self.tokens[rows], token.gather(1, kept.indices).flatten()[:, None]], 1)
        self.totals = kept.values
        self._choose(rows, in_sample=len(rows) == batch * beams)
        return best[:, :1]

    def _note(self, totals: Tensor, rows: Tensor, powers: Any) -> None:
        """Enter texts that end among the best: their log-probabilities float[B,N], -inf for none, rows int64[B,N]."""
        scores = torch.where(self.closed[:, None] | (totals == -torch.inf), -torch.inf, totals.double() / powers)
        most = self.ended.shape[2]
        texts = F.pad(self.tokens[rows], (most - self.tokens.shape[1], 0), value=NOTHING)
        order = torch.cat([self.scores, scores], 1).sort(dim=1, descending=True, stable=True)
        self.scores, chosen = order.values[:, :self.scores.shape[1]], order.indices[:, :self.scores.shape[1]]
        self.ended = torch.cat([self.ended, texts], 1).gather(1, chosen[:, :, None].expand(-1, -1, most))

    def _end(self, last: list[bool]) -> None:
        """Let the running texts of samples at their last token end."""
        totals = self.totals.masked_fill(~self._on_device(last)[:, None], -torch.inf)
        rows = torch.arange(self.totals.numel(), device=self.device).reshape(self.totals.shape)
        self._note(totals, rows, self._powers(int(self.options.lavis_lengths)))

    def _over(self, last: list[bool]) -> list[bool]:
        """Which samples are over; and which texts stop before the next token."""
        if all(last) or (max(self.ages) == 1 and self.stops is None):  # one ended text closes no sample
            return last
        closed, *written = self._read(self.closed, *([] if self.stops is None else [self.tokens]))
        if self.stops is not None:
            self.stopped = [self.stops(text) for text in _texts_of(written[0], self.tokens.shape[1])]
        return [bool(one) or at_last for one, at_last in zip(closed, last, strict=True)]

    def _leave(self, staying: list[int]) -> None:
        gone, beams = sorted({*range(len(self))} - {*staying}), self.totals.shape[1]
        left, kept = self._on_device(gone), self._on_device(staying).long()
        self._gone.append(([self._numbers[number] for number in gone], self.scores[left], self.ended[left]))
        self._numbers = [self._numbers[number] for number in staying]
        for name in ("totals", "closed", "scores", "ended"):
            setattr(self, name, getattr(self, name)[kept])
        rows = [number * beams + beam for number in staying for beam in range(beams)]
        self.stopped = [self.stopped[row] for row in rows] if self.stopped else []
        self._continue(staying, self._on_device(rows).long())


def best_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `topk` along the vocabulary, float[M,V] -> float[M,count], int64[M,count].

    On a CPU only the blocks with the highest maxima are searched, which is faster: a maximum needs one reading.
    """
    blocks = scores.shape[1] // BLOCK
    if scores.device.type != "cpu" or blocks <= 2 * count:
        return scores.topk(count, dim=1)
    whole, rest = scores[:, :blocks * BLOCK].unflatten(1, (blocks, BLOCK)), scores[:, blocks * BLOCK:]
    chosen = whole.amax(2).topk(count, dim=1).indices
    tokens = torch.cat([(chosen[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1),
                        torch.arange(blocks * BLOCK, scores.shape[1]).expand(len(scores), -1)], 1)
    looked_at = whole.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    found = torch.cat([looked_at, rest], 1).topk(count, dim=1)
    return found.values, tokens.gather(1, found.indices)


def _texts_of(ids: list[int], width: int) -> list[list[int]]:
    """Rows of `width` numbers without NOTHING."""
    return [[id_ for id_ in ids[at:at + width] if id_ != NOTHING] for at in range(0, len(ids), width)]
