"""Encoder-decoder language models (T5, FlanT5, BART) behind the contract.

The encoder reads [soft prompt | prompt | padding]; the decoder writes the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.decoding import Decoder
from lavis_lite.models.language.cache import RowCache
from lavis_lite.models.language.contract import LanguageModel, Normalise
from lavis_lite.models.language.decoder_only import sum_rows
from lavis_lite.models.language.head import full, output_layer
from lavis_lite.models.language.tokens import pad_rows


@dataclass
class Encoded:
    """What the decoder looks at: float[B,S,D'] and bool[B,S]."""

    states: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> Encoded:
        """The batch rows `rows`, with repetition."""
        return Encoded(self.states.index_select(0, rows), self.mask.index_select(0, rows))


class Seq2SeqDecoder:
    """The decoder half, continued token by token, by at most `room` tokens."""

    def __init__(self, owner: EncoderDecoder, encoded: Encoded, room: int) -> None:
        self.owner, self.encoded, self.room = owner, encoded, room
        self.rows: RowCache | None = None

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> float[M,V]."""
        if self.rows is not None and rows is not None and self.rows.select(rows):
            self.encoded = self.encoded.select(rows)
        cache = None if self.rows is None else self.rows.cache
        output = self.owner.decode(tokens[:, None], self.encoded, past_key_values=cache, use_cache=True)
        if self.rows is None:
            self.rows = RowCache(output.past_key_values, torch.arange(len(tokens), device=tokens.device), self.room)
        else:
            self.rows.cache = output.past_key_values
        return full(output_layer(self.owner.model)(output.last_hidden_state[:, -1].to(tokens.device)))


class EncoderDecoder(LanguageModel):
    """A sequence-to-sequence language model behind the contract."""

    def training_rows(self, prompts: Sequence[str], targets: Sequence[str],
                      vectors: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Ids that are read and ids that are learned, B rows each, within the limits."""
        prompt, target = self.room.fit_training(vectors, self.limits.prompt, self.limits.target)
        return (self.tokenizer.prompts(prompts, prompt, self.limits.prompt_side),
                self.tokenizer.targets(targets, [target] * len(targets)))

    def row_losses(self, soft_prompt: Tensor, before: Sequence[Sequence[int]],
                   after: Sequence[Sequence[int]]) -> Tensor:
        """Negative log-likelihood of every learned token, float[T], rows in order."""
        return self._target_losses(self.encode(soft_prompt, before), after)[0]

    def _target_losses(self, encoded: Encoded, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Losses float[T] of the rows' tokens, and their positions bool[B,L]."""
        ids, real = pad_rows(rows, self.pad, self.family.training_side, encoded.states.device)
        inputs = torch.cat([torch.full_like(ids[:, :1], self.begin), ids[:, :-1]], 1)
        width = ids.shape[1]
        positions = torch.tensor([row * width + at for row, target in enumerate(rows) for at in range(len(target))])
        positions = positions.to(ids.device, non_blocking=True)
        with self.own_precision():
            hidden = self.decode(inputs, encoded, use_cache=False).last_hidden_state.to(ids.device)
            chosen = hidden.flatten(0, 1).index_select(0, positions)
            return self.likelihoods(chosen, ids.flatten().index_select(0, positions)), real

    def prefix_embeds(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """[soft prompt | prompt | padding]: float[B,S,D], bool[B,S]."""
        ids, mask = pad_rows(prompts, self.pad, "right", soft_prompt.device)
        embeds = torch.cat([soft_prompt.to(self.dtype), self.embed(ids)], 1)
        return embeds, torch.cat([mask.new_ones(soft_prompt.shape[:2]), mask], 1)

    def encode(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> Encoded:
        """Run the encoder."""
        with self.own_precision():
            embeds, mask = self.prefix_embeds(soft_prompt, prompts)
            output = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask.long())
        return Encoded(output.last_hidden_state.to(embeds.device), mask)

    def decode(self, ids: Tensor, encoded: Encoded, **given: Any) -> Any:
        """Run the decoder on int64[B,L]."""
        return self.model.get_decoder()(input_ids=ids, encoder_hidden_states=encoded.states,
                                        encoder_attention_mask=encoded.mask.long(), **given)

    def decoder(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], room: int,
                image_index: Tensor | None = None) -> tuple[Decoder, int]:
        """The decoder of `decode`, and the id it starts from."""
        return Seq2SeqDecoder(self, self.read(soft_prompt, prompts, image_index), room), self.begin

    def read(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor | None = None) -> Encoded:
        """The encoder's output. It sees soft prompt and prompt together, so that prompts share nothing."""
        return self.encode(soft_prompt if image_index is None else soft_prompt.index_select(0, image_index), prompts)

    def candidate_scores(self, prefix: Any, samples: list[int], rows: list[list[int]], normalise: Normalise) -> Tensor:
        """Score of candidates after samples of the prefix: float[M]."""
        chosen = torch.tensor(samples).to(prefix.states.device, non_blocking=True)
        losses, real = self._target_losses(prefix.select(chosen), rows)
        return -sum_rows(losses, real, normalise)

    @property
    def begin(self) -> int:
        """Id that a decoder starts from."""
        return int(self.model.config.decoder_start_token_id)
