"""Encoder-decoder language models (T5, FlanT5, BART) behind the contract.

The encoder reads [soft prompt | prompt | padding]; the decoder writes the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.decoding import Decoder
from lavis_lite.models.language.cache import RowCache
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.decoder_only import sum_rows
from lavis_lite.models.language.head import full, output_layer
from lavis_lite.models.language.rows import (
    Part,
    Row,
    Tokens,
    counted,
    cut_end,
    framed_prompt,
    size,
    tokenised_to_answer,
    tokenised_to_learn,
)
from lavis_lite.models.language.scoring import Normalise
from lavis_lite.models.language.segments import Segments
from lavis_lite.models.language.tokens import pad_rows
from lavis_lite.models.widths import step_of, width_at


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

    prefix_padding = "right"
    traced = ("states",)

    def training_rows(self, prompts: Sequence[str], targets: Sequence[str],
                      vectors: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Ids that are read and ids that are learned, B rows each, within the limits."""
        prompt, target = self.room.fit_training(vectors, self.limits.prompt, self.limits.target)
        return (self.tokenizer.prompts(prompts, prompt, self.limits.prompt_side),
                self.tokenizer.targets(targets, [target] * len(targets)))

    def losses_of(self, rows: Sequence[Row]) -> Tensor:
        """Negative log-likelihood of every token that the decoder writes, which ends a row: float[T], rows in order."""
        from lavis_lite.models.language.grouping import in_groups, passes  # of training only

        written = [row[-1].ids for row in rows if isinstance(row[-1], Tokens)]

        def losses(numbers: Sequence[int]) -> Tensor:
            read, targets = [rows[number][:-1] for number in numbers], [written[number] for number in numbers]
            columns = self._least(read, targets) if self.few_widths else (0, 0)
            with self.own_precision():
                embeds, mask = self.arranged(read, self.prefix_padding, columns[0])
                return self._target_losses(partial(self.states, embeds, mask), targets, embeds.device, columns[1])[0]

        counts = list(map(len, written))
        groups = passes(self, [(size(row[:-1]), count) for row, count in zip(rows, counts, strict=True)])
        return in_groups(groups, counts, losses)

    def _least(self, read: Sequence[Row], written: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Columns of encoder and decoder if widths are few; both go up by the same steps."""
        vectors, limits = len(read[0][0]) if isinstance(read[0][0], Tensor) else 0, self.limits
        step = max(step_of(max(map(size, read)) - vectors, limits.prompt),
                   step_of(max(map(len, written)), limits.target))
        most = self.room.positions or 2**30
        return (min(vectors + width_at(step, limits.prompt), most), min(width_at(step, limits.target), most))

    def training_sequences(self, sequences: Sequence[Segments]) -> list[Row]:
        """A row for every learned text: the encoder reads all that stands before it.

        A text is left out if the encoder has no room for that. If the decoder has no room for it, it loses its end.
        """
        rows = [[*self._read(parts[:at]), part.closed(self.tokenizer.end)]
                for parts in tokenised_to_learn(sequences, self.tokenizer, self.hidden_size)
                for at, part in enumerate(parts) if isinstance(part, Tokens) and part.learned]
        limit = self.row_limit
        cut = [[] if limit is not None and size(row[:-1]) > limit else [*row[:-1], *cut_end(row[-1:], limit)]
               for row in rows]
        return counted(rows, cut, self.tokenizer)

    def answer_rows(self, sequences: Sequence[Segments]) -> list[Row]:
        """What the encoder reads."""
        return [self._read(parts) for parts in tokenised_to_answer(sequences, self.tokenizer, self.hidden_size)]

    def _read(self, parts: Row) -> list[Part]:
        """An encoder's row: no end token stands between its texts."""
        return framed_prompt([Tokens(part.ids) if isinstance(part, Tokens) else part for part in parts], self.tokenizer)

    def states(self, embeds: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """The decoder's hidden states at int64[B,L], float[B,L,D'], beside rows to read float[B,S,D], bool[B,S]."""
        return self.written_states(self.read_embeds(embeds, mask), ids)

    def written_states(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """The decoder's hidden states at int64[B,L], float[B,L,D']."""
        found: Tensor = self.decode(ids, encoded, use_cache=False).last_hidden_state
        return found

    def _target_losses(self, states: Callable[[Tensor], Tensor], rows: Sequence[Sequence[int]], device: torch.device,
                       least: int = 0) -> tuple[Tensor, Tensor]:
        """Losses float[T] of the rows' tokens, and their positions bool[B,L]; L is not less than `least`.

        `states` gives the decoder's hidden states float[B,L,D'] at its inputs int64[B,L].
        """
        ids, real = pad_rows(rows, self.pad, self.family.training_side, device, least)
        inputs = torch.cat([torch.full_like(ids[:, :1], self.begin), ids[:, :-1]], 1)
        width = ids.shape[1]
        positions = torch.tensor([row * width + at for row, target in enumerate(rows) for at in range(len(target))])
        positions = positions.to(ids.device, non_blocking=True)
        with self.own_precision():
            hidden = states(inputs).to(ids.device)
            chosen = hidden.flatten(0, 1).index_select(0, positions)
            return self.likelihoods(chosen, ids.flatten().index_select(0, positions)), real

    def encode(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> Encoded:
        """Run the encoder."""
        with self.own_precision():
            return self.read_embeds(*self.prefix_embeds(soft_prompt, prompts))

    def read_embeds(self, embeds: Tensor, mask: Tensor) -> Encoded:
        """Run the encoder on [row | padding]: float[B,S,D], bool[B,S]."""
        output = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask.long())
        return Encoded(output.last_hidden_state.to(embeds.device), mask)

    def decode(self, ids: Tensor, encoded: Encoded, **given: Any) -> Any:
        """Run the decoder on int64[B,L]."""
        return self.model.get_decoder()(input_ids=ids, encoder_hidden_states=encoded.states,
                                        encoder_attention_mask=encoded.mask.long(), **given)

    def decoder_of(self, prefix: Encoded, room: int) -> tuple[Decoder, int]:
        """What continues a state by at most `room` tokens, and the id it starts from."""
        return Seq2SeqDecoder(self, prefix, room), self.begin

    def read(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor | None = None) -> Encoded:
        """The encoder's output. It sees soft prompt and prompt together, so that prompts share nothing."""
        return self.encode(soft_prompt if image_index is None else soft_prompt.index_select(0, image_index), prompts)

    def candidate_scores(self, prefix: Any, samples: list[int], rows: list[list[int]], normalise: Normalise) -> Tensor:
        """Score of candidates after samples of the prefix: float[M]."""
        chosen = torch.tensor(samples).to(prefix.states.device, non_blocking=True)
        states = partial(self.written_states, prefix.select(chosen))
        losses, real = self._target_losses(states, rows, prefix.states.device)
        return -sum_rows(losses, real, normalise)

    @property
    def begin(self) -> int:
        """Id that a decoder starts from."""
        return int(self.model.config.decoder_start_token_id)
