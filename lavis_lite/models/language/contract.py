"""What a language model is to BLIP-2: a soft prompt and texts in, a loss, texts or scores out.

Axes: B samples, Q vectors of the soft prompt, D width of the model's word embeddings, L text tokens, T tokens to
predict, C candidates.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, shown
from lavis_lite.finite import check_finite
from lavis_lite.models.base import freeze, without_autocast
from lavis_lite.models.decoding import Decoder, Decoding, decode
from lavis_lite.models.language import head
from lavis_lite.models.language.families import LMFamily, LMLoadOptions
from lavis_lite.models.language.tokens import LanguageTokenizer, Limits, Room, positions_of
from lavis_lite.models.plain_text import as_text, uncounted
from lavis_lite.models.text_tokens import SpecialIds

GenerationConfig = Decoding
Candidates = Sequence[str] | Sequence[Sequence[str]]
Normalise = Literal["sum", "mean"]
ImageIndex = Sequence[int] | Tensor
"""indices, as a list or int64[B]"""
PAIRS_AT_ONCE = 64
"""pairs of a sample and a candidate that are scored together"""


class LanguageModel(nn.Module, ABC):
    """A language model that is prompted by vectors; frozen, unless `unfreeze` is called.

    Args:
        model: of transformers, with its output layer.
        tokenizer: its text side.
        family: its row of facts.
        limits: of training texts.
        lm_reduction: average the loss over the tokens of all ranks ("global") or of this rank (LAVIS).

    Attributes:
        hidden_size: D.
        trains: whether all weights train.
        setup: how the weights are held; adapters, if any, are what trains.
        is_dispatched: the weights lie where they belong and have their type: `.to()` leaves them alone.
    """

    def __init__(self, model: Any, tokenizer: LanguageTokenizer, family: LMFamily, limits: Limits | None = None,
                 lm_reduction: Literal["global", "per_rank"] = "global") -> None:
        super().__init__()
        self.model, self.tokenizer, self.family = model, tokenizer, family
        self.limits, self.lm_reduction = limits or Limits(), lm_reduction
        self.load_options, self.is_dispatched, self.trains = LMLoadOptions(), False, False
        freeze(self)

    def unfreeze(self) -> None:
        """Let every weight train: float32, under the autocast around it. It stays in eval mode, without dropout."""
        self.trains, self.stays_frozen = True, False
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()

    @property
    def hidden_size(self) -> int:
        """D, the width of a soft prompt's vectors: that of the word embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the word embeddings; the model runs in its own type, whatever autocast is around it."""
        return self.model.get_input_embeddings().weight.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> LanguageModel:
        """Move weights without a change of their type, in `.to()` and its like; dispatched ones stay where they are."""

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return self if self.is_dispatched else super()._apply(move, recurse)

    @property
    def room(self) -> Room:
        """How much text the model has room for."""
        return Room(positions_of(self.model.config), joint=not self.model.config.is_encoder_decoder)

    def check_tokenizer(self) -> None:
        """Load the tokenizer now, not with the first text; ConfigError where it does not go with the model."""
        self.tokenizer.check(int(self.model.get_input_embeddings().weight.shape[0]))

    # the contract ---------------------------------------------------------------------------------------------------
    def loss(self, soft_prompt: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """Mean negative log-likelihood of the targets' tokens, each text's end included.

        Args:
            soft_prompt: float[B,Q,D].
            prompts: B strings that are read, not learned.
            targets: B strings that are learned.

        Returns:
            float[]. Its gradient reaches the soft prompt, and adapters where there are any.

        Raises:
            ConfigError: not B prompts and B targets.
        """
        soft_prompt = self._check(soft_prompt, prompts, targets)
        losses = self.row_losses(soft_prompt, *self.training_rows(prompts, targets, soft_prompt.shape[1]))
        count = losses.new_tensor(float(len(losses)))
        if self.lm_reduction == "global":
            count = distributed.all_reduce_sum(count) / distributed.world_size()
        return losses.sum() / count

    def count_tokens(self, prompts: Sequence[str], targets: Sequence[str], vectors: int) -> int:
        """How many tokens `loss` averages over on this rank: for these texts, behind so many vectors."""
        with uncounted(self.tokenizer.cut_prompts, self.tokenizer.cut_targets):
            return sum(len(row) for row in self.training_rows(prompts, targets, vectors)[1])

    @torch.no_grad()
    def generate(self, soft_prompt: Tensor, prompts: Sequence[str], options: GenerationConfig,
                 image_index: ImageIndex | None = None) -> list[str]:
        """Answers to soft prompts with prompts; a batch answers as its members would one by one.

        Args:
            soft_prompt: float[B,Q,D], or float[U,Q,D] with image_index.
            prompts: B strings, not cut.
            options: how to write; max_new_tokens has its room behind every prompt.
            image_index: which soft prompt each of the B prompts follows. A decoder-only model then reads a soft
                prompt once for all its prompts. None: each its own.

        Returns:
            B * options.num_captions texts, prompts in order.

        Raises:
            ConfigError: not one prompt per soft prompt or index, or an index out of range.
            TextTooLongError: prompts longer than the model's positions allow.
        """
        soft_prompt = self._check(soft_prompt, prompts, image_index=image_index)
        rows = self.prompt_rows(prompts, soft_prompt.shape[1], options)
        return self.tokenizer.decode(self.generate_ids(soft_prompt, rows, options, image_index))

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

    @torch.no_grad()
    def score(self, soft_prompt: Tensor, prompts: Sequence[str], candidates: Candidates, *,
              normalise: Normalise = "sum", pairs: int = PAIRS_AT_ONCE,
              image_index: ImageIndex | None = None) -> Tensor:
        """Log-likelihood of every candidate answer; what comes before it is computed once per sample.

        Args:
            soft_prompt: float[B,Q,D], or float[U,Q,D] with image_index.
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
        soft_prompt = self._check(soft_prompt, prompts, image_index=image_index)
        before, rows = self.scoring_rows(prompts, candidates, soft_prompt.shape[1])
        pairs_of = [(sample, index) for sample, texts in enumerate(rows) for index in range(len(texts))]
        scores = torch.full((len(rows), max(map(len, rows), default=0)), -torch.inf, device=soft_prompt.device)
        if not rows:
            return scores
        prefix = self.read(soft_prompt, before, _as_tensor(image_index, soft_prompt.device))
        for start in range(0, len(pairs_of), pairs):
            some = pairs_of[start:start + pairs]
            found = self.candidate_scores(prefix, [sample for sample, _ in some],
                                          [rows[sample][index] for sample, index in some], normalise)
            check_finite(found, partial(_not_finite, some))
            scores[[sample for sample, _ in some], [index for _, index in some]] = found.to(scores.dtype)
        return scores

    def scoring_rows(self, prompts: Sequence[str], candidates: Candidates,
                     vectors: int) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Ids of B prompts and of each one's candidates, if the model has room for them behind so many vectors.

        Raises:
            ConfigError: see `score`; or a candidate without any token.
            TextTooLongError: see `score`.
        """
        texts = [self.candidate_texts(prompt, own) for prompt, own in
                 zip(prompts, candidate_lists(candidates, len(prompts)), strict=True)]
        different = list(dict.fromkeys(text for own in texts for text in own))
        ids = dict(zip(different, self.tokenizer.targets(different, end=self.family.candidate_end), strict=True))
        rows = [[ids[text] for text in own] for own in texts]
        for sample, own in enumerate(rows):
            if not all(own):
                raise ConfigError(f"sample {sample}: a candidate without any token cannot be scored.")
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
    def prefix_embeds(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Soft prompts float[B,Q,D] and B prompts' ids as one sequence to answer: float[B,S,D], mask bool[B,S]."""

    @abstractmethod
    def row_losses(self, soft_prompt: Tensor, before: Sequence[Sequence[int]],
                   after: Sequence[Sequence[int]]) -> Tensor:
        """Negative log-likelihood of every learned token of the batch, float[T], rows in order.

        Args:
            soft_prompt: float[B,Q,D].
            before: ids that are read.
            after: ids that are learned.
        """

    @abstractmethod
    def decoder(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]], room: int,
                image_index: Tensor | None = None) -> tuple[Decoder, int]:
        """What `decode` steps, at most `room` times, and the id it starts from (-1: none)."""

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
    def generate_ids(self, soft_prompt: Tensor, prompts: Sequence[Sequence[int]],
                     options: GenerationConfig, image_index: ImageIndex | None = None) -> list[list[int]]:
        """As `generate`, from prompts' ids to answers' ids without their end."""
        if not prompts:
            return []
        with self.own_precision():
            index = _as_tensor(image_index, soft_prompt.device)
            decoder, begin = self.decoder(soft_prompt, prompts, options.max_new_tokens, index)
            if begin < 0 and options.lavis_lengths:  # a start token that nothing reads, but that is penalised
                start = self.model.config.bos_token_id
                begin = -1 if start is None else int(start)
            special = SpecialIds(int(self.model.config.vocab_size), self.pad, begin, self.tokenizer.end)
            context = prompts if options.penalise_prompt and self.room.joint else None
            return decode(decoder, len(prompts), special, options, soft_prompt.device, context)

    def likelihoods(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of targets int64[T] at hidden states float[T,D]: float[T]."""
        project = head.output_layer(self.model)
        layer = self.model.get_output_embeddings()
        if any(value.requires_grad for value in layer.parameters()):
            return head.token_losses_plain(hidden, project, targets)
        return head.token_losses(hidden, project, targets, head.tokens_at_once(len(layer.weight)))

    @property
    def pad(self) -> int:
        """Id that fills shorter rows; never seen by any attention, so any id serves where there is none."""
        return int(self.tokenizer.loaded.pad_token_id or 0)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: int64[B,L] -> float[B,L,D]."""
        words: Tensor = self.model.get_input_embeddings()(ids)
        return words

    def own_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast switched off around frozen weights, which have their type; weights that train follow it."""
        return contextlib.nullcontext() if self.trains else without_autocast(home(self.model))

    def _check(self, soft_prompt: Tensor, *texts: Sequence[str], image_index: ImageIndex | None = None) -> Tensor:
        """The soft prompt, where the word embeddings are."""
        if soft_prompt.ndim != 3 or soft_prompt.shape[2] != self.hidden_size:
            raise ConfigError(f"a soft prompt has shape (B, Q, {self.hidden_size}) here, not "
                              f"{tuple(soft_prompt.shape)}.")
        samples = len(soft_prompt) if image_index is None else check_image_index(image_index, len(soft_prompt))
        for rows in texts:
            if isinstance(rows, str) or len(rows) != samples:
                count = "one string" if isinstance(rows, str) else f"{len(rows)} texts"
                raise ConfigError(f"{samples} samples came with {count}; give a list with one for each.")
        return soft_prompt.to(home(self.model)) if self.is_dispatched else soft_prompt


def language_model_of(model: object) -> LanguageModel | None:
    """The package's language model in a model's attribute `language_model`; None: it has none, or another kind."""
    found = getattr(model, "language_model", None)
    return found if isinstance(found, LanguageModel) else None


def check_image_index(image_index: ImageIndex, count: int) -> int:
    """The number of indices, checked.

    Args:
        image_index: B indices.
        count: U, the number of soft prompts.

    Raises:
        ConfigError: not a list of whole numbers from 0 to U - 1.
    """
    values = image_index.tolist() if isinstance(image_index, Tensor) else image_index
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)
             or not 0 <= value < count] if isinstance(values, Sequence) else [values]
    if wrong:
        raise ConfigError(f"image_index: {wrong[0]!r} is none of the {count} soft prompts; give each prompt its soft "
                          f"prompt's index, a whole number from 0 to {count - 1}.")
    return len(values)


def _not_finite(pairs: Sequence[tuple[int, int]], row: int) -> str:
    return f"score: the likelihoods of sample {pairs[row][0]} are NaN or infinite."


def _as_tensor(image_index: ImageIndex | None, device: torch.device) -> Tensor | None:
    return None if image_index is None else torch.as_tensor(image_index, dtype=torch.long, device=device)


def candidate_lists(candidates: Candidates, batch: int) -> list[list[str]]:
    """One list of candidates per sample.

    Raises:
        ConfigError: an empty list, or lists that are not one per sample.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or not candidates:
        raise ConfigError(f"candidates must be a list of answers, not {shown(candidates)}.")
    if not any(isinstance(own, (list, tuple)) for own in candidates):
        return [[as_text(text, "candidates") for text in candidates]] * batch
    if len(candidates) != batch:
        raise ConfigError(f"{batch} samples came with {len(candidates)} lists of candidates; give one for each, or one "
                          "list of strings for all.")
    for sample, texts in enumerate(candidates):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ConfigError(f"sample {sample}: its candidates must be a list of answers, not {shown(texts)}.")
        if not texts:
            raise ConfigError(f"sample {sample} has no candidates.")
    return [[as_text(text, "candidates") for text in texts] for texts in candidates]


def home(model: Any) -> torch.device:
    """Device of the word embeddings: where a soft prompt enters and results come back to."""
    words = model.get_input_embeddings()
    # where accelerate keeps weights elsewhere, its hook knows where they are used
    device = getattr(getattr(words, "_hf_hook", None), "execution_device", None)
    return words.weight.device if device is None else torch.device(device)
