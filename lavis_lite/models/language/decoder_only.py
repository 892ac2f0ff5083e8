"""Decoder-only language models (OPT, LLaMA, GPT-2, Qwen, Phi ...) behind the contract.

In training a row is [soft prompt | prompt | target | padding]; causal attention never looks at the padding, so no mask
is needed. In answering a row is [padding | soft prompt | prompt], and masks and positions leave the padding out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.base import at_least_float32
from lavis_lite.models.decoding import Decoder
from lavis_lite.models.language.answering import Normalise
from lavis_lite.models.language.cache import RowCache, has_whole_masks, is_plain, select_rows
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.rows import (
    Row,
    Segments,
    closed,
    counted,
    cut_end,
    framed_prompt,
    learned_tokens,
    size,
    split_prompt,
    tokenised_to_answer,
    tokenised_to_learn,
)
from lavis_lite.models.language.tokens import differ, on_device, pad_rows, real_positions
from lavis_lite.models.language.weights import output_layer


@dataclass
class Prefix:
    """What an answer follows: the cache of B prefixes, their mask bool[B,S], and the last hidden state float[B,D].

    padded: whether the mask leaves anything out.
    """

    cache: Any
    mask: Tensor
    last: Tensor
    padded: bool = True


class CausalDecoder:
    """What continues a prefix token by token, by at most `room` tokens; `beams` of a sample go through as one row."""

    def __init__(self, owner: DecoderOnly, prefix: Prefix, room: int, beams: int = 1) -> None:
        self.owner, self.padded, self.width = owner, prefix.padded, prefix.mask.shape[1]
        self.last: Tensor | None = prefix.last
        self.rows = RowCache(prefix.cache, prefix.mask, room, owner.fixes_cache, beams)

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """int64[M] -> float[M,V]; the first call continues the prefix and ignores its tokens."""
        if self.last is not None:
            hidden, self.last = self.last, None
        else:
            if rows is not None:
                self.keep(rows)
            beams = self.rows.beams
            states, self.rows.cache = self.owner.hidden(self.owner.embed(tokens.view(-1, beams)), self.rows.advance(),
                                                        self.rows.cache, self.padded or self.rows.fixed or beams > 1)
            hidden = states.flatten(0, 1)
        return at_least_float32(output_layer(self.owner.model)(hidden))

    def keep(self, rows: Tensor) -> None:
        """Keep the texts int64[M'], with repetition."""
        self.rows.keep(rows)

    def permute(self, rows: Tensor) -> None:
        """Keep the texts int64[M], each of the same sample as before."""
        self.rows.keep(rows, in_sample=True)

    def join(self, other: CausalDecoder, tokens: int) -> None:
        """Put another decoder's rows behind; the oldest row of both has so many tokens, the newest still to be read."""
        self.width, self.padded = max(self.width, other.width), True
        self.rows.join(other.rows, self.width + (tokens - 1) * self.rows.beams)


class DecoderOnly(LanguageModel):
    """A causal language model behind the contract."""

    prefix_padding = "left"
    traced = ("states",)

    def losses_of(self, rows: Sequence[Row]) -> Tensor:
        """Negative log-likelihood of every learned token, float[T], rows in order."""
        from lavis_lite.models.language.grouping import in_groups, passes  # of training only

        learned = [learned_tokens(row) for row in rows]
        groups = passes(self, [(size(row),) for row in rows])

        def predicting(numbers: Sequence[int]) -> Tensor:
            """Hidden states float[T,D] that predict the learned tokens of these rows."""
            chosen = [rows[number] for number in numbers]
            embeds, _ = self.arranged(chosen, "right", self._least(chosen))
            length = embeds.shape[1]
            positions = [at + index * length for index, number in enumerate(numbers) for at in learned[number][0]]
            hidden = self.states(embeds).to(embeds.device)
            return hidden.flatten(0, 1).index_select(0, on_device(positions, embeds.device))

        with self.own_precision():
            hidden = in_groups(groups, [len(ids) for _, ids in learned], predicting)
            return self.likelihoods(hidden, on_device([one for _, ids in learned for one in ids], hidden.device))

    def states(self, embeds: Tensor) -> Tensor:
        """Hidden states float[B,S,D] of rows of embeddings."""
        found: Tensor = self._base()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return found

    def _least(self, rows: Sequence[Row]) -> int:
        """Columns of a training pass if widths are few; 0: as many as it needs."""
        if not self.few_widths:
            return 0
        from lavis_lite.models.widths import few  # of training only

        vectors = len(rows[0][0]) if isinstance(rows[0][0], Tensor) else 0
        wanted = vectors + few(max(map(size, rows)) - vectors, self.limits.texts)
        return min(wanted, self.room.positions or wanted)

    def training_sequences(self, sequences: Sequence[Segments]) -> list[Row]:
        """One row per sequence, cut at its end."""
        rows = []
        for parts in tokenised_to_learn(sequences, self.tokenizer, self.hidden_size):
            prompt, rest = split_prompt(parts)
            rows.append([*framed_prompt(closed(prompt, self.tokenizer), self.tokenizer),
                         *closed(rest, self.tokenizer)])
        cut = [cut_end(row, self.row_limit) for row in rows]
        return counted([cut_end(row, None) for row in rows], cut, self.tokenizer)

    def answer_rows(self, sequences: Sequence[Segments]) -> list[Row]:
        """The prompts, with what was answered before and its ends."""
        return [framed_prompt(closed(parts, self.tokenizer), self.tokenizer)
                for parts in tokenised_to_answer(sequences, self.tokenizer, self.hidden_size)]

    def training_rows(self, prompts: Sequence[str], targets: Sequence[str],
                      vectors: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Ids that are read and ids that are learned, B rows each, within the limits."""
        limits = self.limits
        prompt_limit, shared = self.room.fit_training(vectors, limits.prompt, limits.target)
        before = self.tokenizer.prompts(prompts, prompt_limit, limits.prompt_side)
        rooms = [limits.target if limits.together is None else max(limits.together - len(row), 1) for row in before]
        rooms = [min(room, shared - len(row)) for room, row in zip(rooms, before, strict=True)]
        texts = [self.tokenizer.continuation(prompt, text) for prompt, text in zip(prompts, targets, strict=True)]
        after = self.tokenizer.targets(texts, rooms)
        if self.family.learns_bos:
            for row, prompt in enumerate(prompts):
                if not prompt:
                    before[row], after[row] = [], [*before[row], *after[row]]
        return before, after

    def decoder_of(self, prefix: Prefix, room: int, beams: int = 1) -> tuple[Decoder, int]:
        """What continues a state by at most `room` tokens; it starts from none."""
        return CausalDecoder(self, prefix, room, beams if self.takes_whole_masks else 1), -1

    def candidate_texts(self, prompt: str, texts: Sequence[str]) -> list[str]:
        """Candidates as they appear after their prompt."""
        return [self.tokenizer.continuation(prompt, text) for text in texts]

    def read(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor | None = None) -> Prefix:
        """State after soft prompts and prompts; a soft prompt that several prompts follow is read once."""
        with self.own_precision():
            if image_index is not None and self.can_share(soft_prompt, prompts):
                return self._read_shared(soft_prompt, prompts, image_index)
            if image_index is not None:
                soft_prompt = soft_prompt.index_select(0, image_index)
            return self.read_embeds(*self.prefix_embeds(soft_prompt, prompts), padded=differ(prompts))

    def read_embeds(self, embeds: Tensor, mask: Tensor, padded: bool = True) -> Prefix:
        """State after [padding | row]: float[B,S,D], bool[B,S]."""
        hidden, cache = self.hidden(embeds, mask, None, padded)
        return Prefix(cache, mask, hidden[:, -1], padded)

    def can_share(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether soft prompts float[U,Q,D] can be read before B prompts: fewer of them, and nothing goes by slots.

        The prompts are padded between soft prompt and prompt. A mask leaves that out of full attention, but not out
        of a sliding window, nor out of the distances of a model that takes no positions.
        """
        lengths = {len(row) for row in prompts}
        if len(soft_prompt) >= len(prompts) or 0 in lengths:
            return False
        return is_plain(self.model.config) and (len(lengths) == 1 or self._takes_positions())

    def _read_shared(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor) -> Prefix:
        """[soft prompt | padding | prompt], the soft prompts' cache spread over their prompts."""
        ids, mask = pad_rows(prompts, self.pad, "left", soft_prompt.device)
        _, cache = self.hidden(soft_prompt.to(self.dtype), mask.new_ones(soft_prompt.shape[:2]), None, False)
        mask, padded = torch.cat([mask.new_ones(len(mask), soft_prompt.shape[1]), mask], 1), differ(prompts)
        hidden, cache = self.hidden(self.embed(ids), mask, select_rows(cache, image_index), padded)
        return Prefix(cache, mask, hidden[:, -1], padded)

    def candidate_scores(self, prefix: Any, samples: list[int], rows: list[list[int]], normalise: Normalise) -> Tensor:
        """Score of candidates after samples of the prefix: float[M]."""
        device = prefix.mask.device
        chosen, (ids, real) = on_device(samples, device), pad_rows(rows, self.pad, "right", device)
        with self.own_precision():
            hidden = prefix.last.index_select(0, chosen)[:, None]
            if ids.shape[1] > 1:
                mask = torch.cat([prefix.mask.index_select(0, chosen), real[:, :-1]], 1)
                more, _ = self.hidden(self.embed(ids[:, :-1]), mask, select_rows(prefix.cache, chosen), prefix.padded)
                hidden = torch.cat([hidden, more], 1)
            scored = real_positions(rows, ids.shape[1], device)
            losses = self.likelihoods(*(part.flatten(0, 1).index_select(0, scored) for part in (hidden, ids)))
        return -sum_rows(losses, real, normalise)

    def hidden(self, embeds: Tensor, mask: Tensor, cache: Any, padded: bool = True) -> tuple[Tensor, Any]:
        """Hidden states of new tokens and the cache with them.

        Args:
            embeds: float[B,N,D].
            mask: bool[B,S+N], over earlier and new tokens; or bool[B,N,S+N], what each new one sees.
            cache: of the S earlier tokens, or None.
            padded: whether the mask leaves out anything before a token that counts.
        """
        if self.takes_whole_masks:
            seen = self._seen(mask, embeds.shape[1], padded)
        else:
            mask = mask if mask.ndim == 2 else mask[:, 0]
            seen = mask.long()
        given: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": seen, "past_key_values": cache}
        if self._takes_positions():
            before = mask.sum(2) if mask.ndim == 3 else mask.long().cumsum(1)[:, -embeds.shape[1]:]
            given["position_ids"] = (before - 1).clamp(min=0)
        output = self._base()(**given, use_cache=True)
        return output.last_hidden_state.to(embeds.device), output.past_key_values

    @staticmethod
    def _seen(mask: Tensor, new: int, padded: bool) -> Tensor | None:
        """What each of the last `new` tokens sees, bool[B,1,N,S+N]; None: all before it. Padding sees itself."""
        if not padded:
            return None
        if mask.ndim == 3:
            return mask[:, None]
        after = mask.shape[1] - new
        whole = mask.new_ones(new, mask.shape[1])
        return mask[:, None, None] & whole.tril(after) | (whole.tril(after) & whole.triu(after))

    @property
    def takes_whole_masks(self) -> bool:
        """Whether masks and positions may be given as attention needs them; transformers reads none of them then."""
        return has_whole_masks(self.model) and is_plain(self.model.config) and self._takes_positions()

    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self._base().forward).parameters

    def _base(self) -> Any:
        """The model without its output layer."""
        return getattr(self.model, self.model.base_model_prefix)


def sum_rows(values: Tensor, real: Tensor, normalise: Normalise) -> Tensor:
    """Sum or mean over each row's real positions: float[T], bool[M,L] -> float[M]."""
    filled = values.new_zeros(real.shape).masked_scatter(real, values)
    total = filled.sum(1)
    return total if normalise == "sum" else total / real.sum(1)
