"""What a language model attends to while it writes: weights of a plain softmax, by transformers' own interface."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, TextTooLongError
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.rows import Row, Segments, learned_tokens
from lavis_lite.models.plain_text import uncounted


@dataclass(frozen=True)
class Reading:
    """One text as a language model reads it to learn it.

    Attributes:
        ids: T tokens, the end token included.
        losses: negative log-likelihoods float[T].
        weights: float[N,H,T,V], attention at the V vectors of the sequence, in the position that predicts each token.
    """

    ids: list[int]
    losses: Tensor
    weights: Tensor


def read(model: LanguageModel, segments: Segments) -> Reading:
    """One sequence that ends with the text to look at; see `Reading`.

    Raises:
        TextTooLongError: the model has no room for all of it.
        ConfigError: its attention cannot be seen.
    """
    cut = model.tokenizer.cut_rows
    with uncounted(cut, model.tokenizer.lost_rows):
        before = cut.cut
        rows = model.training_sequences([segments])
        if cut.cut > before:
            raise TextTooLongError("attention: picture, prompt and text are longer than the language model's "
                                   "positions; give a shorter text.", {0: cut.longest})
    [row] = rows
    with recorded(model) as kept:
        losses = model.losses_of([row])
    positions, ids = learned_tokens(row)
    if not model.room.joint:  # the decoder has the text alone, and its start token predicts the first
        positions = list(range(len(ids)))
    columns = _vectors(row).to(model.home)
    weights = torch.stack([layer[0].to(model.home) for layer in kept])
    return Reading(ids, losses, weights[:, :, positions][..., columns])


def _vectors(row: Row) -> Tensor:
    """Positions of the vectors in a row: int64[V]."""
    parts, at = [], 0
    for part in row:
        if isinstance(part, Tensor):
            parts.append(torch.arange(at, at + len(part)))
        at += len(part)
    return torch.cat(parts)


@contextlib.contextmanager
def recorded(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Within it, the model keeps what its writing half attends to: yields float[B,H,S,T] of each layer.

    Of an encoder-decoder that is the decoder's attention to what the encoder read.
    """
    inner: Any = model.model
    joint = model.room.joint
    writer = getattr(inner, inner.base_model_prefix) if joint else inner.get_decoder()
    before, kept = inner.config._attn_implementation, []

    def ask(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**given, "output_attentions": True}

    def keep(module: Any, args: Any, output: Any) -> None:
        found = output.attentions if joint else output.cross_attentions
        if not found or found[0] is None:
            raise ConfigError(f"attention: {type(inner).__name__} gives no attention weights.")
        kept.extend(found)

    inner.set_attn_implementation("eager")
    hooks = [writer.register_forward_pre_hook(ask, with_kwargs=True), writer.register_forward_hook(keep)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
        inner.set_attn_implementation(before)
