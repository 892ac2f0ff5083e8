"""Who may attend to whom in the Q-Former: the three patterns of BLIP-2 (section 3.2, figure 2), in one place.

A mask is bool[B, 1, S, S], True if the row (the token that looks) may see the column (the token looked at). The
sequence is [queries | text]. Two queries q and three text tokens t, x: visible:

    uni_modal (ITC)      multi_modal_causal (ITG)    bidirectional (ITM)
        q q t t t            q q t t t                   q q t t t
      q x x . . .          q x x . . .                 q x x x x x
      q x x . . .          q x x . . .                 q x x x x x
      t . . x x x          t x x x . .                 t x x x x x
      t . . x x x          t x x x x .                 t x x x x x
      t . . x x x          t x x x x x                 t x x x x x

Columns of padding are never seen. None means "everything is visible", which lets SDPA take its fastest path.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["uni_modal", "multi_modal_causal", "bidirectional"]
"""uni_modal: queries and text do not see each other. multi_modal_causal: queries see queries, text sees all queries and
the text before it. bidirectional: all see all; also for the instructions of InstructBLIP."""


def attention_mask(pattern: Pattern, num_query: int, text_mask: Tensor | None) -> Tensor | None:
    """The mask of one pattern.

    Args:
        pattern: see `Pattern`.
        num_query: Q, how many query tokens stand in front of the text (may be 0).
        text_mask: bool or int[B, L], true for real tokens; None when there is no text.

    Returns:
        bool[B, 1, Q+L, Q+L], or None when there is no text.
    """
    if text_mask is None:
        return None
    real = text_mask.bool()
    batch, length = real.shape
    total = num_query + length
    is_query = torch.arange(total, device=real.device) < num_query
    seen = torch.cat([real.new_ones(batch, num_query), real], 1)[:, None, None, :]
    if pattern == "uni_modal":
        allowed = is_query[:, None] == is_query[None, :]
    elif pattern == "multi_modal_causal":
        causal = torch.ones(total, total, dtype=torch.bool, device=real.device).tril()
        allowed = torch.where(is_query[:, None], is_query[None, :], causal)
    elif pattern == "bidirectional":
        allowed = torch.ones(total, total, dtype=torch.bool, device=real.device)
    else:
        raise ValueError(f"unknown attention pattern {pattern!r}")
    return allowed & seen


def stage1_mask(num_query: int, text_mask: Tensor) -> Tensor:
    """Mask of the joint pass [queries | text for ITC | text for ITG]: uni-modal and causal pattern side by side.

    The queries see only themselves in both patterns, which is why one pass can serve both. The text for ITG (u) lacks
    its last token, from which nothing is predicted:

          q q t t t u u
        q x x . . . . .
        q x x . . . . .
        t . . x x x . .
        t . . x x x . .
        t . . x x x . .
        u x x . . . x .
        u x x . . . x x

    Args:
        num_query: Q.
        text_mask: bool or int[B, L].

    Returns:
        bool[B, 1, Q+2L-1, Q+2L-1].
    """
    batch, length = text_mask.shape
    uni_modal = attention_mask("uni_modal", num_query, text_mask)
    causal = attention_mask("multi_modal_causal", num_query, text_mask[:, :-1])
    assert uni_modal is not None and causal is not None
    first, total = num_query + length, num_query + 2 * length - 1
    mask = text_mask.new_zeros(batch, 1, total, total, dtype=torch.bool)
    mask[:, :, :first, :first] = uni_modal
    mask[:, :, first:, :num_query] = causal[:, :, num_query:, :num_query]
    mask[:, :, first:, first:] = causal[:, :, num_query:, num_query:]
    return mask
