"""Texts of unequal lengths without padding between them.

A packed batch is one row of R = N*Q + T tokens: the queries of all N sequences, then all their real text tokens.
Every linear layer, norm and feed-forward runs on this row. Attention alone needs the sequences apart. Those with
equally long texts form a group, and a group needs one dense call without padding. The padded batch
(`QFormer.run_layers` with a mask) computes the same numbers and is the plain twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.qformer.model import stage1_mask

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""float[n,H,S,d], float[n,H,T,d] twice, mask -> float[n,S,H*d]"""


class _Permuted(torch.autograd.Function):
    """Rows in another order. Every row is used once, so the backward pass gathers too and need not add."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return tensor.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(0, back), None, None


@dataclass(frozen=True)
class Order:
    """A permutation and its inverse, int64[R] each."""

    there: Tensor
    back: Tensor

    @classmethod
    def of(cls, there: Tensor, device: torch.device) -> Order:
        """From the permutation on the host."""
        return cls(*(order.to(device, non_blocking=True) for order in (there, torch.argsort(there))))

    def __call__(self, tensor: Tensor) -> Tensor:
        """float[R, ...] in this order."""
        return _Permuted.apply(tensor, self.there, self.back)

    def undo(self, tensor: Tensor) -> Tensor:
        """float[R, ...] in the order before."""
        return _Permuted.apply(tensor, self.back, self.there)


@dataclass(frozen=True)
class Group:
    """Sequences of equal length: n of them, S tokens of each look at all its T tokens; mask bool[1,1,S,T] or None."""

    count: int
    looking: int
    seen: int
    mask: Tensor | None


@dataclass(frozen=True)
class Packing:
    """How the self-attention of one layer finds the sequences of a packed batch.

    groups: the sequences by length.
    keys: packed tokens -> tokens group by group.
    queries: the same for the tokens that look, R' of them.
    kept: int64[R'], the packed tokens that this layer computes; None: all R.
    """

    groups: tuple[Group, ...]
    keys: Order
    queries: Order
    kept: Tensor | None = None

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """float[R',H,d], float[R,H,d] twice -> float[R',H*d]."""
        looking, seen = ([getattr(group, side) * group.count for group in self.groups] for side in ("looking", "seen"))
        parts = zip(self.groups, self.queries(query).split(looking), self.keys(key).split(seen),
                    self.keys(value).split(seen), strict=True)
        mixed = [self._attend_group(attend, *part) for part in parts]
        return self.queries.undo(torch.cat(mixed))

    @staticmethod
    def _attend_group(attend: Attend, group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = (part.unflatten(0, (group.count, -1)).transpose(1, 2) for part in (query, key, value))
        return attend(queries, keys, values, group.mask).flatten(0, 1)


@dataclass(frozen=True)
class PackedText:
    """N sequences of queries and text, of lengths known to the host, ready for a packed pass.

    rows: int64[T], the text tokens as indices into the padded batch int64[N,L], flattened; the second texts follow
        the first ones.
    positions: int64[T], of each token in its text.
    layers: packing of all layers but the last.
    last: of the last layer, which computes only what is used.
    """

    rows: Tensor
    positions: Tensor
    layers: Packing
    last: Packing


def pack_matching(lengths: Sequence[int], width: int, num_query: int, device: torch.device) -> PackedText:
    """Queries and text see each other (ITM); the last layer computes the queries.

    Args:
        lengths: real tokens of each of the N texts.
        width: L, columns of the padded texts.
        num_query: Q.
        device: of the results.
    """
    return _Packer([list(lengths)], width, num_query, device).pack(lambda length: None,
                                                                   lambda length: torch.arange(num_query))


def pack_unimodal_and_itg(lengths: Sequence[int], width: int, num_query: int, device: torch.device) -> PackedText:
    """Queries, text for ITC and text for ITG as in `stage1_mask`.

    The last layer computes the queries, [CLS] and ITG's text. The second text lacks the last token, from which nothing
    is predicted. Arguments as of `pack_matching`.
    """
    def mask(length: int) -> Tensor:
        return stage1_mask(num_query, torch.ones(1, length, dtype=torch.bool))

    def used(length: int) -> Tensor:
        return torch.cat([torch.arange(num_query + 1), torch.arange(num_query + length, num_query + 2 * length - 1)])

    return _Packer([list(lengths), [length - 1 for length in lengths]], width, num_query, device).pack(mask, used)


class _Packer:
    """Lays out N sequences [queries | text | ...] as one row [all queries | all first texts | ...], on the host."""

    def __init__(self, texts: list[list[int]], width: int, num_query: int, device: torch.device) -> None:
        self.lengths, self.width, self.num_query, self.device = torch.tensor(texts), width, num_query, device
        starts = self.lengths.flatten().cumsum(0) - self.lengths.flatten()
        self.starts = (num_query * self.lengths.shape[1] + starts).view_as(self.lengths)

    def pack(self, mask: Callable[[int], Tensor | None], used: Callable[[int], Tensor]) -> PackedText:
        """Group the sequences by the length of their first text.

        Args:
            mask: length -> who sees whom in a sequence, bool[1,1,S,S]; None: everyone.
            used: length -> the tokens int64[S'] of a sequence that the last layer computes.
        """
        groups, last_groups, members, kept = [], [], [], []
        for length in self.lengths[0].unique().tolist():
            tokens, seen, columns = self._tokens(length), mask(length), used(length)
            count, total = tokens.shape
            groups.append(Group(count, total, total, self._put(seen)))
            seen = None if seen is None else seen[:, :, columns]
            last_groups.append(Group(count, len(columns), total, self._put(seen)))
            members.append(tokens.flatten())
            kept.append(tokens[:, columns].flatten())
        by_group, kept_by_group = torch.cat(members), torch.cat(kept)
        ordered = kept_by_group.sort().values
        keys = Order.of(by_group, self.device)
        queries = Order.of(torch.searchsorted(ordered, kept_by_group), self.device)
        return PackedText(*self._text_rows(), Packing(tuple(groups), keys, keys),
                          Packing(tuple(last_groups), keys, queries, self._put(ordered)))

    def _tokens(self, length: int) -> Tensor:
        """Tokens of the sequences of a length, as indices into the row: int64[n,S]."""
        chosen = (self.lengths[0] == length).nonzero()[:, 0]
        parts = [chosen[:, None] * self.num_query + torch.arange(self.num_query)]
        for lengths, starts in zip(self.lengths, self.starts, strict=True):
            parts.append(starts[chosen][:, None] + torch.arange(int(lengths[chosen[0]])))
        return torch.cat(parts, 1)

    def _text_rows(self) -> tuple[Tensor, Tensor]:
        count, lengths = self.lengths.shape[1], self.lengths.flatten()
        positions = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        sequence = torch.arange(count).repeat(len(self.lengths)).repeat_interleave(lengths)
        return (sequence * self.width + positions).to(self.device), positions.to(self.device)

    def _put(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)
