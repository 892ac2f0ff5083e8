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

from lavis_lite.models.base import at_least_float32
from lavis_lite.models.decoding import Decoder
from lavis_lite.models.language import packed_t5
from lavis_lite.models.language.answering import Normalise
from lavis_lite.models.language.cache import RowCache, has_whole_masks, stacked
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.decoder_only import sum_rows
from lavis_lite.models.language.rows import (
    Part,
    Row,
    Segments,
    Tokens,
    counted,
    cut_end,
    framed_prompt,
    in_a_row,
    size,
    tokenised_to_answer,
    tokenised_to_learn,
)
from lavis_lite.models.language.tokens import differ, on_device, pad_rows, real_positions
from lavis_lite.models.language.weights import output_layer


@dataclass
class Encoded:
    """What the decoder looks at: float[B,S,D'] and bool[B,S]; `padded`: whether the mask leaves anything out."""

    states: Tensor
    mask: Tensor
    padded: bool = True

    def select(self, rows: Tensor) -> Encoded:
        """The batch rows `rows`, with repetition."""
        return Encoded(self.states.index_select(0, rows), self.mask.index_select(0, rows), self.padded)

    def joined(self, other: Encoded) -> Encoded:
        """These rows and those of another one."""
        padded = self.padded or other.padded or self.mask.shape != other.mask.shape
        return Encoded(stacked([self.states, other.states], "right"),
                       stacked([self.mask, other.mask], "right", axis=1), padded)


class Seq2SeqDecoder:
    """The decoder half, continued token by token, by at most `room` tokens; see `RowCache` for `beams`."""

    def __init__(self, owner: EncoderDecoder, encoded: Encoded, room: int, beams: int = 1) -> None:
        self.owner, self.encoded, self.room, self.ragged = owner, encoded, room, False
        self.is_t5 = packed_t5.can_pack(owner.model) and not owner.is_dispatched
        self.beams = beams if self.is_t5 else 1
        self.distances = packed_t5.distances(owner.model.get_decoder(), room) if self.is_t5 else None
        self.rows: RowCache | None = None

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> float[M,V]."""
        if rows is not None:
            self.keep(rows)
        hidden = self._first(tokens) if self.rows is None else self._next(tokens, self.rows)
        return at_least_float32(output_layer(self.owner.model)(hidden.to(tokens.device)))

    def _first(self, tokens: Tensor) -> Tensor:
        mask = self.encoded.mask.new_ones(len(tokens), 1)
        hidden, cache = self._by_transformers(tokens, mask[:, None], None)
        self.rows = RowCache(cache, mask, self.room, self.owner.fixes_cache, self.beams)
        return hidden

    def _next(self, tokens: Tensor, rows: RowCache) -> Tensor:
        seen = rows.advance()
        if self.distances is None:
            return self._by_transformers(tokens, seen, rows.cache)[0]
        encoded = self.encoded.mask[:, None, None] if self.encoded.padded else None
        bias = packed_t5.seen_distances(self.distances, seen, rows.end)
        return packed_t5.step(self.owner.model.get_decoder(), tokens.view(-1, rows.beams), bias, rows.cache, encoded)

    def _by_transformers(self, tokens: Tensor, seen: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Hidden states float[M,D'] and the cache with the tokens int64[M], which see bool[M,1,S]."""
        needed = self.ragged or self.owner.fixes_cache or not self.owner.has_distances
        given = {"attention_mask": seen[:, None]} if needed and self.owner.takes_whole_masks else {}
        output = self.owner.decode(tokens[:, None], self.encoded, past_key_values=cache, use_cache=True, **given)
        return output.last_hidden_state[:, -1], output.past_key_values

    def keep(self, rows: Tensor) -> None:
        """Keep the texts int64[M'], with repetition."""
        assert self.rows is not None, "a step was made"
        self.encoded = self.encoded.select(self.rows.keep(rows))

    def permute(self, rows: Tensor) -> None:
        """Keep the texts int64[M], each of the same sample as before."""
        assert self.rows is not None, "a step was made"
        self.rows.keep(rows, in_sample=True)

    def join(self, other: Seq2SeqDecoder, tokens: int) -> None:
        """Put another decoder's rows behind; the oldest row of both has so many tokens, the newest still to be read."""
        assert self.rows is not None and other.rows is not None, "both have made a step"
        self.encoded, self.ragged = self.encoded.joined(other.encoded), True
        self.rows.join(other.rows, 1 + (tokens - 1) * self.rows.beams)


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
        """Negative log-likelihood of every learned token of rows, float[T]; the decoder writes each row's last part."""
        from lavis_lite.models.language.grouping import in_groups, in_order, passes  # of training only

        read = [row[:-1] for row in rows]
        written = [row[-1].ids for row in rows if isinstance(row[-1], Tokens)]
        sizes = list(zip(map(size, read), map(len, written), strict=True))

        def losses(numbers: Sequence[int]) -> Tensor:
            chosen, targets = [read[number] for number in numbers], [written[number] for number in numbers]
            columns = self._least(chosen, targets) if self.few_widths else (0, 0)
            padded = self.few_widths or len(set(map(size, chosen))) > 1
            with self.own_precision():
                embeds, mask = self.arranged(chosen, self.prefix_padding, columns[0])
                states = partial(self.states, embeds, mask, padded=padded)
                return self._target_losses(states, targets, embeds.device, columns[1])[0]

        groups, counts = passes(self, sizes), list(map(len, written))
        if len(groups) == 1 or not self._packs:
            return in_groups(groups, counts, losses)
        order = sorted(range(len(rows)), key=lambda number: sizes[number])
        packed = self._packed_losses([read[number] for number in order], [written[number] for number in order])
        return in_order(packed, [order], counts)

    def _least(self, read: Sequence[Row], written: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Columns of encoder and decoder if widths are few; both go up by the same steps."""
        from lavis_lite.models.widths import step_of, width_at  # of training only

        vectors, limits = len(read[0][0]) if isinstance(read[0][0], Tensor) else 0, self.limits
        step = max(step_of(max(map(size, read)) - vectors, limits.prompt),
                   step_of(max(map(len, written)), limits.target))
        most = self.room.positions or 2**30
        return (min(vectors + width_at(step, limits.prompt), most), min(width_at(step, limits.target), most))

    @property
    def _packs(self) -> bool:
        """Whether rows are computed without padding between them; on a GPU the many small groups would wait."""
        return self.home.type == "cpu" and not self.is_dispatched and packed_t5.can_pack(self.model)

    def _packed_losses(self, read: Sequence[Row], written: Sequence[Sequence[int]]) -> Tensor:
        """Losses float[T] of the tokens of rows in the order of their sizes."""
        ids = [id_ for row in written for id_ in row]
        shifted = [id_ for row in written for id_ in [self.begin, *row][:len(row)]]
        both = packed_t5.groups_of([(size(row), len(target)) for row, target in zip(read, written, strict=True)])
        reading, writing = ([(rows, sizes[at]) for rows, sizes in both] for at in (0, 1))
        with self.own_precision():
            embeds = in_a_row(read, self.embed, self.pad, self.home)
            encoded = packed_t5.encode(self.model.get_encoder(), embeds, packed_t5.groups_of(list(map(size, read))))
            begun, targets = on_device(shifted, self.home), on_device(ids, self.home)
            hidden = packed_t5.decode(self.model.get_decoder(), begun, writing, encoded, reading)
            return self.likelihoods(hidden, targets)

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

    def states(self, embeds: Tensor, mask: Tensor, ids: Tensor, padded: bool = True) -> Tensor:
        """The decoder's hidden states at int64[B,L], float[B,L,D'], beside rows to read float[B,S,D], bool[B,S]."""
        return self.written_states(self.read_embeds(embeds, mask, padded), ids)

    def written_states(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """The decoder's hidden states at int64[B,L], float[B,L,D']."""
        found: Tensor = self.decode(ids, encoded, use_cache=False).last_hidden_state
        return found

    def _target_losses(self, states: Callable[[Tensor], Tensor], rows: Sequence[Sequence[int]], device: torch.device,
                       least: int = 0) -> tuple[Tensor, Tensor]:
        """Losses float[T] of the rows' tokens, and their positions bool[B,L]; L is not less than `least`.

        `states` gives the decoder's hidden states float[B,L,D'] at its inputs int64[B,L].
        """
        ids, real = pad_rows(rows, self.pad, "right", device, least)
        inputs = torch.cat([torch.full_like(ids[:, :1], self.begin), ids[:, :-1]], 1)
        positions = real_positions(rows, ids.shape[1], self.home)
        with self.own_precision():
            hidden = states(inputs).to(ids.device)
            chosen = hidden.flatten(0, 1).index_select(0, positions)
            return self.likelihoods(chosen, ids.flatten().index_select(0, positions)), real

    def encode(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> Encoded:
        """Run the encoder."""
        with self.own_precision():
            return self.read_embeds(*self.prefix_embeds(soft_prompt, prompts), padded=differ(prompts))

    def read_embeds(self, embeds: Tensor, mask: Tensor, padded: bool = True) -> Encoded:
        """Run the encoder on [row | padding]: float[B,S,D], bool[B,S]."""
        output = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=self._seen(mask, padded))
        return Encoded(output.last_hidden_state.to(embeds.device), mask, padded)

    def decode(self, ids: Tensor, encoded: Encoded, **given: Any) -> Any:
        """Run the decoder on int64[B,L]."""
        return self.model.get_decoder()(input_ids=ids, encoder_hidden_states=encoded.states,
                                        encoder_attention_mask=self._seen(encoded.mask, encoded.padded), **given)

    def _seen(self, mask: Tensor, padded: bool) -> Tensor | None:
        """Which of the tokens that the encoder reads are seen, as transformers wants it; None: all."""
        if not self.takes_whole_masks:
            return mask.long()
        return mask[:, None, None] if padded else None

    @property
    def takes_whole_masks(self) -> bool:
        """Whether masks may be given as attention needs them; transformers reads none of them then."""
        return has_whole_masks(self.model)

    @property
    def has_distances(self) -> bool:
        """Whether the decoder knows distances between tokens and no positions (T5)."""
        return str(self.model.config.model_type) in ("t5", "mt5", "umt5")

    def decoder_of(self, prefix: Encoded, room: int, beams: int = 1) -> tuple[Decoder, int]:
        """What continues a state by at most `room` tokens, and the id it starts from."""
        return Seq2SeqDecoder(self, prefix, room, beams), self.begin

    def read(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor | None = None) -> Encoded:
        """The encoder's output. It sees soft prompt and prompt together, so that prompts share nothing."""
        return self.encode(soft_prompt if image_index is None else soft_prompt.index_select(0, image_index), prompts)

    def candidate_scores(self, prefix: Any, samples: list[int], rows: list[list[int]], normalise: Normalise) -> Tensor:
        """Score of candidates after samples of the prefix: float[M]."""
        states = partial(self.written_states, prefix.select(on_device(samples, self.home)))
        losses, real = self._target_losses(states, rows, prefix.states.device)
        return -sum_rows(losses, real, normalise)

    @property
    def begin(self) -> int:
        """Id that a decoder starts from."""
        return int(self.model.config.decoder_start_token_id)
