"""What a language model is to a vision-language model: sequences of segments in; a loss, texts or scores out.

A sequence is a list of texts and vectors (`lavis_lite.models.language.rows`). Its shortest form, a soft prompt,
a prompt and a target, has a call of its own.

Axes: B samples, Q vectors of the soft prompt, D width of the model's word embeddings, L text tokens, T tokens to
predict, C candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.models.decoding import Decoder, Decoding
from lavis_lite.models.language import answering
from lavis_lite.models.language.answering import PAIRS_AT_ONCE, Candidates, ImageIndex, Normalise
from lavis_lite.models.language.families import LMFamily, LMLoadOptions
from lavis_lite.models.language.rows import Row, Segments, arrange, learned_tokens, short_rows, size
from lavis_lite.models.language.tokens import LanguageTokenizer, Limits, Room, positions_of
from lavis_lite.models.language.weights import HeldWeights
from lavis_lite.models.plain_text import Side, uncounted

GenerationConfig = Decoding


class LanguageModel(HeldWeights, ABC):
    """A language model that is prompted by vectors; frozen, unless `unfreeze` is called.

    Args:
        model: of transformers, with its output layer.
        tokenizer: its text side.
        family: its row of facts.
        limits: of training texts.
        lm_reduction: average the loss over the tokens of all ranks ("global") or of this rank (LAVIS).

    Attributes:
        load_options: how the weights are held; adapters, if any, are what trains.
        prefix_padding: side on which rows that are answered are padded.
    """

    prefix_padding: ClassVar[Side]
    at_once: int | None = None  # answers that are written at the same time, the others of a batch wait; None: all
    fixed_cache: bool | None = None  # whether keys and values have their final shape; None: on a GPU
    most_padding: float = 0.05  # of a training pass, see `grouping`; 1: one pass, for blocks that know the batch's rows
    traced: ClassVar[Sequence[str]] = ()  # and `few_widths`: as in `BaseModel`

    def __init__(self, model: Any, tokenizer: LanguageTokenizer, family: LMFamily, limits: Limits | None = None,
                 lm_reduction: Literal["global", "per_rank"] = "global") -> None:
        super().__init__(model)
        self.tokenizer, self.family, self.limits = tokenizer, family, limits or Limits()
        self.lm_reduction, self.load_options, self.few_widths = lm_reduction, LMLoadOptions(), False

    @property
    def room(self) -> Room:
        """How much text the model has room for."""
        return Room(positions_of(self.model.config), joint=not self.model.config.is_encoder_decoder)

    @property
    def row_limit(self) -> int | None:
        """Most tokens and vectors of a sequence in training; None: any number."""
        return min((most for most in (self.limits.row, self.room.positions) if most is not None), default=None)

    def check_tokenizer(self) -> None:
        """Load the tokenizer now, not with the first text; ConfigError where it does not go with the model."""
        self.tokenizer.check(int(self.model.get_input_embeddings().weight.shape[0]))

    # the contract ---------------------------------------------------------------------------------------------------
    @overload
    def loss(self, sequences: Sequence[Segments], /) -> Tensor: ...
    @overload
    def loss(self, soft_prompt: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor: ...
    def loss(self, soft_prompt: Any, prompts: Sequence[str] = (), targets: Sequence[str] = ()) -> Tensor:
        """Mean negative log-likelihood of the learned tokens.

        Args:
            soft_prompt: B sequences of segments; every text that is learned counts. Or float[B,Q,D], before:
            prompts: B strings that are read, not learned.
            targets: B strings that are learned, each text's end included.

        Returns:
            float[]. Its gradient reaches the vectors, and what trains of the model. 0 if no learned token is left.

        Raises:
            ConfigError: not B prompts and B targets; something that is no segment.
            DataError: a sequence without a text to learn.
        """
        if isinstance(soft_prompt, Tensor):
            soft_prompt = self._check(soft_prompt, prompts, targets)
            losses = self.row_losses(soft_prompt, *self.training_rows(prompts, targets, soft_prompt.shape[1]))
        else:
            rows = self.training_sequences(soft_prompt)
            losses = self.losses_of(rows) if rows else answering.no_losses(self, soft_prompt)
        count = losses.new_tensor(float(len(losses)))
        if self.lm_reduction == "global":
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return losses.sum() / count.clamp(min=1 / distributed.world_size())

    @overload
    def count_tokens(self, sequences: Sequence[Segments], /) -> int: ...
    @overload
    def count_tokens(self, prompts: Sequence[str], targets: Sequence[str], vectors: int) -> int: ...
    def count_tokens(self, prompts: Any, targets: Sequence[str] | None = None, vectors: int = 0) -> int:
        """How many tokens `loss` averages over on this rank: of sequences, or of texts behind so many vectors."""
        words = self.tokenizer
        with uncounted(words.cut_prompts, words.cut_targets, words.cut_rows, words.lost_rows):
            if targets is None:
                return sum(len(learned_tokens(row)[1]) for row in self.training_sequences(prompts))
            return sum(len(row) for row in self.training_rows(prompts, targets, vectors)[1])

    @overload
    def generate(self, sequences: Sequence[Segments], options: GenerationConfig, /) -> list[str]: ...
    @overload
    def generate(self, soft_prompt: Tensor, prompts: Sequence[str], options: GenerationConfig,
                 image_index: ImageIndex | None = None) -> list[str]: ...
    @torch.no_grad()
    def generate(self, soft_prompt: Any, prompts: Any, options: Any = None,
                 image_index: ImageIndex | None = None) -> list[str]:
        """Answers; a batch answers as its members would one by one.

        Args:
            soft_prompt: B sequences of segments, then the options. Or float[B,Q,D], or float[U,Q,D] with image_index,
                before:
            prompts: B strings, not cut.
            options: how to write; max_new_tokens has its room behind every prompt.
            image_index: which soft prompt each of the B prompts follows. A decoder-only model then reads a soft
                prompt once for all its prompts. None: each its own.

        Returns:
            B * options.num_captions texts, samples in order.

        Raises:
            ConfigError: not one prompt per soft prompt or index, or an index out of range. Of sequences: something
                that is no segment, or a learned text at the end.
            TextTooLongError: prompts longer than the model's positions allow.
        """
        if not isinstance(soft_prompt, Tensor):
            return [answer.text for answer in answering.answers(self, soft_prompt, prompts, scored=False)]
        soft_prompt = self._check(soft_prompt, prompts, image_index=image_index)
        rows = self.prompt_rows(prompts, soft_prompt.shape[1], options)
        return self.tokenizer.decode(self.generate_ids(soft_prompt, rows, options, image_index), options.stop)

    def generate_scored(self, sequences: Sequence[Segments], options: GenerationConfig) -> list[answering.Answer]:
        """As `generate`, with the log-likelihood of each answer: the sum over its tokens, its end included."""
        return answering.answers(self, sequences, options, scored=True)

    def generate_stream(self, sequences: Sequence[Segments], options: GenerationConfig) -> Iterator[str]:
        """The answer to one sequence piece by piece; all pieces together are what `generate` returns.

        Raises:
            ConfigError: several sequences, beams or texts; and as `generate`, both at the first piece.
        """
        return answering.stream(self, sequences, options)

    def prompt_rows(self, prompts: Sequence[str], vectors: int, options: GenerationConfig) -> list[list[int]]:
        """Ids of prompts, if the model has room for them behind so many vectors and before the longest answer.

        Raises:
            ConfigError: no answer of options.max_new_tokens fits.
            TextTooLongError: see `generate`.
        """
        self.room.check_answer(options.max_new_tokens)
        rows = self.tokenizer.prompts(prompts)
        self.room.check_prompts(rows, vectors, [options.max_new_tokens] * len(rows))
        return rows

    @overload
    def score(self, sequences: Sequence[Segments], candidates: Candidates, /, *, normalise: Normalise = "sum",
              pairs: int = PAIRS_AT_ONCE) -> Tensor: ...
    @overload
    def score(self, soft_prompt: Tensor, prompts: Sequence[str], candidates: Candidates, *,
              normalise: Normalise = "sum", pairs: int = PAIRS_AT_ONCE,
              image_index: ImageIndex | None = None) -> Tensor: ...
    @torch.no_grad()
    def score(self, soft_prompt: Any, prompts: Any, candidates: Any = None, *, normalise: Normalise = "sum",
              pairs: int = PAIRS_AT_ONCE, image_index: ImageIndex | None = None) -> Tensor:
        """Log-likelihood of every candidate answer; what comes before it is computed once per sample.

        Args:
            soft_prompt: B sequences of segments, then the candidates. Or float[B,Q,D], or float[U,Q,D] with
                image_index, before:
            prompts: B strings.
            candidates: C strings for all samples, or one list per sample.
            normalise: sum over a candidate's tokens (LAVIS), or their mean.
            pairs: how many pairs of a sample and a candidate are scored at once; no result depends on it.
            image_index: as in `generate`.

        Returns:
            float[B,C], the higher the likelier; -inf where a sample has fewer than C candidates.

        Raises:
            ConfigError: an empty list of candidates, lists that are not one per sample, or an index out of range.
            TextTooLongError: a prompt with its longest candidate has no room in the model's positions.
            CheckpointError: a likelihood is NaN or infinite.
        """
        if isinstance(soft_prompt, Tensor):
            soft_prompt = self._check(soft_prompt, prompts, image_index=image_index)
            before, rows = self.scoring_rows(prompts, candidates, soft_prompt.shape[1])
            index = _as_tensor(image_index, soft_prompt.device)
            return answering.score_table(self, lambda: self.read(soft_prompt, before, index), rows, normalise, pairs)
        read, rows = answering.scoring_rows(self, soft_prompt, prompts)
        return answering.score_table(self, lambda: self.read_rows(read), rows, normalise, pairs)

    def scoring_rows(self, prompts: Sequence[str], candidates: Candidates,
                     vectors: int) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Ids of B prompts and of each one's candidates, if the model has room for them behind so many vectors.

        Raises:
            ConfigError: see `score`; or a candidate without any token.
            TextTooLongError: see `score`.
        """
        rows = answering.candidate_rows(self, prompts, candidates)
        before = self.tokenizer.prompts(prompts)
        longest = [max(map(len, own)) for own in rows]
        self.room.check_candidates(longest)
        self.room.check_prompts(before, vectors, longest)
        return before, rows

    # what the two kinds do differently --------------------------------------------------------------------------------
    @abstractmethod
    def training_rows(self, prompts: Sequence[str], targets: Sequence[str],
                      vectors: int = 0) -> tuple[list[list[int]], list[list[int]]]:
        """Ids that are read and ids that are learned, B rows each, cut to the limits and to the model's positions.

        Args:
            prompts: B strings.
            targets: B strings.
            vectors: of the soft prompt before each.
        """

    @abstractmethod
    def training_sequences(self, sequences: Sequence[Segments]) -> list[Row]:
        """Training rows of B sequences, cut to the limits; rows without a token to learn are counted and left out."""

    @abstractmethod
    def losses_of(self, rows: Sequence[Row]) -> Tensor:
        """Negative log-likelihood of every learned token of rows, float[T], rows in order."""

    @abstractmethod
    def answer_rows(self, sequences: Sequence[Segments]) -> list[Row]:
        """Rows to answer, which are read whole; see `generate` for what is refused."""

    @abstractmethod
    def read_embeds(self, embeds: Tensor, mask: Tensor, padded: bool = True) -> Any:
        """State after rows float[B,S,D], bool[B,S], to answer from; `padded`: whether the mask leaves anything out."""

    @property
    @abstractmethod
    def takes_whole_masks(self) -> bool:
        """Whether masks may be given as attention needs them; transformers reads none of them then."""

    @property
    def fixes_cache(self) -> bool:
        """Whether what is written next has a cache of its final shape."""
        return self.takes_whole_masks and (self.home.type == "cuda" if self.fixed_cache is None else self.fixed_cache)

    @abstractmethod
    def decoder_of(self, prefix: Any, room: int, beams: int = 1) -> tuple[Decoder, int]:
        """What continues a state by at most `room` tokens, and the id it starts from (-1: none).

        `beams`: texts of each sample after the first step; 1: any number.
        """

    @abstractmethod
    def read(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], image_index: Tensor | None = None) -> Any:
        """State after soft prompts and prompts, to answer from.

        Args:
            soft_prompt: float[B,Q,D]; with image_index float[U,Q,D].
            prompts: ids.
            image_index: int64[B], the soft prompt of each prompt.
        """

    @abstractmethod
    def candidate_scores(self, prefix: Any, samples: list[int], rows: list[list[int]], normalise: Normalise) -> Tensor:
        """Score of candidate ids `rows` after the given samples of `prefix`: float[M]."""

    def candidate_texts(self, prompt: str, texts: Sequence[str]) -> list[str]:
        """Candidates as they appear after their prompt."""
        return list(texts)

    # shared parts -----------------------------------------------------------------------------------------------------
    def row_losses(self, soft_prompt: Tensor, before: Sequence[Sequence[int]],
                   after: Sequence[Sequence[int]]) -> Tensor:
        """Negative log-likelihood of every learned token of the batch, float[T], rows in order.

        Args:
            soft_prompt: float[B,Q,D].
            before, after: ids that are read and ids that are learned.
        """
        return self.losses_of(short_rows(soft_prompt, before, after))

    def prefix_embeds(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Soft prompts float[B,Q,D] and B prompts' ids as one sequence to answer: float[B,S,D], mask bool[B,S]."""
        return self.arranged(short_rows(soft_prompt, prompts), self.prefix_padding)

    def read_rows(self, rows: Sequence[Row]) -> Any:
        """State after rows, to answer from."""
        with self.own_precision():
            return self.read_embeds(*self.arranged(rows, self.prefix_padding), padded=len(set(map(size, rows))) > 1)

    def arranged(self, rows: Sequence[Row], side: Side, least: int = 0) -> tuple[Tensor, Tensor]:
        """Rows as embeddings float[B,S,D], S not less than `least`, and bool[B,S], true where no padding is."""
        embeds, mask = arrange(rows, self.embed, self.pad, side, self.home, least)
        if torch.is_grad_enabled() and not embeds.requires_grad:
            # texts alone: the backward pass of the other ranks waits for this one's blocks
            embeds.requires_grad_(distributed.has_shards(self))
        return embeds, mask

    def generate_ids(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]],
                     options: GenerationConfig, image_index: ImageIndex | None = None) -> list[list[int]]:
        """As `generate`, from prompts' ids to answers' ids without their end."""
        if not prompts:
            return []
        index = _as_tensor(image_index, soft_prompt.device)
        return answering.written(self, answering.reader(self, soft_prompt, prompts, index), prompts, options)

    @property
    def pad(self) -> int:
        """Id that fills shorter rows; never seen by any attention, so any id serves where there is none."""
        return int(self.tokenizer.loaded.pad_token_id or 0)

    def _check(self, soft_prompt: Tensor, *texts: Sequence[str], image_index: ImageIndex | None = None) -> Tensor:
        """The soft prompt, where the word embeddings are."""
        answering.check_samples(soft_prompt, self.hidden_size, texts, image_index)
        return soft_prompt.to(self.home) if self.is_dispatched else soft_prompt


def language_model_of(model: object) -> LanguageModel | None:
    """The package's language model in a model's attribute `language_model`; None: it has none, or another kind."""
    found = getattr(model, "language_model", None)
    return found if isinstance(found, LanguageModel) else None


def _as_tensor(image_index: ImageIndex | None, device: torch.device) -> Tensor | None:
    return None if image_index is None else torch.as_tensor(image_index, dtype=torch.long, device=device)
