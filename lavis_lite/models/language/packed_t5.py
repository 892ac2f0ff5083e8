"""T5 without padding: all rows' tokens behind each other in one matrix, attention by groups of equally long rows.

Every projection is then one matrix product of as many rows as there are tokens. The modules of transformers compute.
Only the order of the tokens, the masks and the loop over the layers are made here. Axes: T tokens of all rows, D width,
H heads, L tokens of a row, n rows of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Groups = Sequence[tuple[int, int]]
"""(n, L) of each group of equally long rows, in the order of their tokens"""


def can_pack(network: Any) -> bool:
    """Whether a model is a T5 that this module computes as transformers does: no dropout, no clamping of fp16.

    Blocks that hooks watch must be called themselves.
    """
    return (network.config.model_type in ("t5", "mt5") and not network.training and network.dtype != torch.float16
            and network.config._attn_implementation == "sdpa"
            and not any(block._forward_hooks or block._forward_pre_hooks
                        for stack in (network.get_encoder(), network.get_decoder()) for block in stack.block))


def groups_of(lengths: Sequence[Any]) -> list[tuple[int, Any]]:
    """(number of rows, their length) of neighbours of the same length."""
    return [(len(list(same)), length) for length, same in groupby(lengths)]


def encode(stack: Any, embeds: Tensor, groups: Groups) -> Tensor:
    """The encoder's output float[T,D] for embeddings float[T,D]."""
    bias = _distances(stack, max(length for _, length in groups))
    hidden = embeds
    for block in stack.block:
        hidden = _through(block, _encoder_block, hidden, groups, bias)
    return stack.final_layer_norm(hidden)


def _encoder_block(block: Any, hidden: Tensor, groups: Groups, bias: Tensor) -> Tensor:
    found: Tensor = block.layer[1](_attend_within(block.layer[0], hidden, groups, bias))
    return found


def _through(block: Any, compute: Callable[..., Tensor], *given: Any) -> Tensor:
    """What a block makes, computed again in the backward pass if `build.recompute_blocks` says so."""
    if getattr(block, "is_recomputed", False) and torch.is_grad_enabled():
        return checkpoint(compute, block, *given, use_reentrant=False)
    return compute(block, *given)


def decode(stack: Any, ids: Tensor, groups: Groups, encoded: Tensor, read: Groups) -> Tensor:
    """The decoder's output float[T,D] for ids int64[T].

    Args:
        stack: the decoder.
        ids: of the tokens.
        groups: of the tokens.
        encoded: the encoder's output float[T',D], rows in the same order.
        read: its groups, as many and of as many rows.
    """
    longest = max(length for _, length in groups)
    later = torch.ones(longest, longest, dtype=torch.bool, device=ids.device).triu(1)
    bias = _distances(stack, longest).masked_fill(later, -torch.inf)
    hidden = stack.embed_tokens(ids)
    for block in stack.block:
        hidden = _through(block, _decoder_block, hidden, groups, bias, encoded, read)
    return stack.final_layer_norm(hidden)


def _decoder_block(block: Any, hidden: Tensor, groups: Groups, bias: Tensor, encoded: Tensor, read: Groups) -> Tensor:
    hidden = _attend_within(block.layer[0], hidden, groups, bias)
    across = block.layer[1]
    attention = across.EncDecAttention
    projected = attention.q(across.layer_norm(hidden)), attention.k(encoded), attention.v(encoded)
    found: Tensor = block.layer[2](hidden + attention.o(_attend(attention, projected, (groups, read, read), None)))
    return found


def distances(stack: Any, room: int) -> Tensor:
    """What the decoder's attention adds for 0, 1 ... room - 1 tokens between two, float[H,room]."""
    attention = stack.block[0].layer[0].SelfAttention
    back = torch.arange(0, -room, -1, device=attention.relative_attention_bias.weight.device)
    buckets = attention._relative_position_bucket(back, False, attention.relative_attention_num_buckets,
                                                  attention.relative_attention_max_distance)
    found: Tensor = attention.relative_attention_bias(buckets).T
    return found


def seen_distances(added: Tensor, seen: Tensor, end: int) -> Tensor:
    """What attention adds for columns, float[B,H,K,C], -inf for what is not seen.

    Args:
        added: float[H,room], by distance.
        seen: bool[B,K,C]; the K texts of a row have written a column each for a token.
        end: behind the newest column.
    """
    beams, columns = seen.shape[1:]
    back = torch.arange(end - 1, end - 1 - columns, -1, device=seen.device).div(beams, rounding_mode="floor")
    return torch.where(seen[:, None], added[:, back.clamp(0, added.shape[1] - 1)][None, :, None], -torch.inf)


def step(stack: Any, ids: Tensor, bias: Tensor, cache: Any, encoded: Tensor | None) -> Tensor:
    """The decoder's output float[B*K,D] for the next tokens of texts, which share the keys and values of their row.

    Args:
        stack: the decoder.
        ids: int64[B,K].
        bias: float[B,H,K,C], as `seen_distances`.
        cache: of transformers, with the B rows.
        encoded: bool[B,1,1,S], what is seen of the encoder's output; None: all.
    """
    hidden = stack.embed_tokens(ids)
    layers = zip(stack.block, cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
    for block, own, read in layers:
        within, across, last = block.layer
        attention, normed = within.SelfAttention, within.layer_norm(hidden)
        keys, values = own.update(_heads(attention, attention.k(normed)), _heads(attention, attention.v(normed)))
        hidden = hidden + _attended(attention, normed, keys, values, bias)
        hidden = last(hidden + _attended(across.EncDecAttention, across.layer_norm(hidden), read.keys, read.values,
                                         encoded))
    found: Tensor = stack.final_layer_norm(hidden).flatten(0, 1)
    return found


def _heads(attention: Any, projected: Tensor) -> Tensor:
    """float[B,N,H*d] -> float[B,H,N,d]."""
    return projected.unflatten(2, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)


def _attended(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    found = F.scaled_dot_product_attention(_heads(attention, attention.q(normed)), keys, values, mask, scale=1.0)
    out: Tensor = attention.o(found.transpose(1, 2).flatten(2))
    return out


def _attend_within(layer: Any, hidden: Tensor, groups: Groups, bias: Tensor) -> Tensor:
    attention, normed = layer.SelfAttention, layer.layer_norm(hidden)
    projected = attention.q(normed), attention.k(normed), attention.v(normed)
    return hidden + attention.o(_attend(attention, projected, (groups, groups, groups), bias))


def _attend(attention: Any, projected: Sequence[Tensor], groups: Sequence[Groups], bias: Tensor | None) -> Tensor:
    """Attention of queries, keys and values float[T,H*d], group by group: float[T,H*d]."""
    parts = [tensor.split([rows * length for rows, length in own]) for tensor, own in zip(projected, groups,
                                                                                           strict=True)]
    found = []
    for (rows, length), *some in zip(groups[0], *parts, strict=True):
        query, key, value = (part.view(rows, -1, attention.n_heads, attention.key_value_proj_dim).transpose(1, 2)
                             for part in some)
        mask = None if bias is None else bias[:, :, :length, :length]
        attended = F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
        found.append(attended.transpose(1, 2).reshape(rows * length, -1))
    return torch.cat(found)


def _distances(stack: Any, length: int) -> Tensor:
    """What attention adds for the distance of two tokens, float[1,H,L,L]; the same in all layers."""
    bias: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    return bias
