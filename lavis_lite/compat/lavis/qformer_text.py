"""`Qformer.generate`: text that continues after the queries, by the decoding of `lavis_lite.models.decoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis_lite.errors import DataError
from lavis_lite.models.decoding import Decoding, decode
from lavis_lite.models.text_tokens import SpecialIds

if TYPE_CHECKING:
    from lavis_lite.compat.lavis.qformer import BertLMHeadModel


class CachedQformer:
    """A Q-Former that has read its queries and continues by one token at a time."""

    def __init__(self, qformer: BertLMHeadModel, past: Any) -> None:
        self.qformer, self.past = qformer, past

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> logits float[M,V]; `rows` int64[M] of the cache are kept first."""
        if rows is not None:
            self.past = tuple((key[rows], value[rows]) for key, value in self.past)
        found = self.qformer(tokens[:, None], past_key_values=self.past, use_cache=True)
        self.past = found.past_key_values
        logits: Tensor = found.logits[:, -1].float()
        return logits


@torch.no_grad()
def generate(qformer: BertLMHeadModel, input_ids: Tensor, query_embeds: Tensor, encoder_hidden_states: Tensor,
             encoder_attention_mask: Tensor | None = None, max_length: int = 20, min_length: int = 0,
             num_beams: int = 1, do_sample: bool = False, top_p: float = 1.0, temperature: float = 1.0,
             repetition_penalty: float = 1.0, length_penalty: float = 1.0, eos_token_id: int = 102,
             pad_token_id: int = 0, **unused: Any) -> Tensor:
    """Texts as int64[B,1+T], the begin token first, `pad_token_id` after the end.

    Args:
        qformer: with its language-model head.
        input_ids: int64[B,1], the begin token.
        query_embeds, encoder_hidden_states, encoder_attention_mask: of B images, or each `num_beams` times, as LAVIS
            repeats them.
        max_length, min_length: with the begin token.
        num_beams, do_sample, top_p, temperature, repetition_penalty, length_penalty: of the decoding.
        eos_token_id, pad_token_id: ids with a role.
        unused: other options of transformers.

    Raises:
        DataError: `input_ids` holds more than one begin token.
    """
    batch = len(input_ids)
    if input_ids.shape[1] != 1 or not bool((input_ids == input_ids[0, 0]).all()):
        raise DataError("Qformer.generate: input_ids must be one begin token for each image.")
    images = [None if value is None else value[::max(len(value) // max(batch, 1), 1)]
              for value in (query_embeds, encoder_hidden_states, encoder_attention_mask)]
    first = qformer.bert(query_embeds=images[0], encoder_hidden_states=images[1], encoder_attention_mask=images[2],
                         use_cache=True)
    special = SpecialIds(qformer.config.vocab_size, pad=pad_token_id, begin=int(input_ids[0, 0]), end=eos_token_id)
    options = Decoding(max(max_length - 1, 1), max(min(min_length, max_length) - 1, 0), 1 if do_sample else num_beams,
                       sample=do_sample, top_p=top_p, temperature=temperature, repetition_penalty=repetition_penalty,
                       length_penalty=length_penalty)
    texts = decode(CachedQformer(qformer, first.past_key_values), batch, special, options, input_ids.device)
    width = 1 + max((len(text) + 1 for text in texts), default=0)
    rows = [([special.begin, *text, eos_token_id] + [pad_token_id] * width)[:width] for text in texts]
    return torch.tensor(rows, dtype=torch.long, device=input_ids.device)[:, :max_length]
