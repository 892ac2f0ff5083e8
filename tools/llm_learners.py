"""The two mini language models while they learn: documents to tensors, tensors to the likelihood of answers.

Axes: B rows, L tokens of a row, T learned tokens of the batch, V vocabulary, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.models.language.build import prepare
from lavis_lite.models.language.families import FAMILIES
from lavis_lite.models.language.tokens import LanguageTokenizer, pad_rows
from lavis_lite.torchvision_shim import ensure_torchvision
from tools.documents import Document, Group

WIDTHS = {"": 128, "_small": 64}
"""By the ending of a model's name."""
HEAD_WIDTH = 32
EMBEDDING_STD = 0.2
"""At the start; of a word as of what an untrained projection gives."""
END_WEIGHT = 0.2
"""Weight in the loss of the token that ends an answer, against 1 for its words."""
START_WEIGHT = 0.1
"""Weight of the decoder-only model's begin token, which follows the vectors where a prompt is empty."""
NOISE = 0.15
"""Of a blended vector, relative to the spread of word embeddings."""
GAIN = (0.5, 2.5)
"""Range of the factor on a document's blended vectors: a soft prompt may have any length."""
ROWS, LONG_ANSWER = 48, 4
"""An encoder-decoder takes so many rows of similar length at once; answers of more tokens go together."""
CPU = torch.device("cpu")


@dataclass
class Predictions:
    """Of a batch: logits float[T,V], ids int64[T], weights float[T], and the number of each token's turn int64[T].

    Turns are numbered through all documents; a begin token has the number -1.
    """

    logits: Tensor
    ids: Tensor
    weights: Tensor
    turns: Tensor


class Learner(ABC):
    """A language model that reads documents.

    Args:
        folder: with its tokenizer.
        model: of transformers.
    """

    family: str

    def __init__(self, folder: str, model: Any) -> None:
        self.model = model
        self.tokenizer = LanguageTokenizer(folder, FAMILIES[self.family], self.family == "t5")
        self.pad = int(self.tokenizer.loaded.pad_token_id)

    @abstractmethod
    def predict(self, documents: Sequence[Document], noise: bool) -> Predictions:
        """Run the model on documents.

        Args:
            documents: any number, with plain or blended contexts.
            noise: whether blended vectors are disturbed (training).
        """

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without special tokens."""
        return self.tokenizer.targets(texts, end=False)

    def weights_of(self, target: Sequence[int]) -> list[float]:
        """Weight of each token of an answer, its end last."""
        return [*[1.0] * (len(target) - 1), END_WEIGHT]

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: int64[...] -> float[...,D]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def read(self, ids: Tensor, contexts: Sequence[tuple[Group, ...]], noise: bool) -> Tensor:
        """Embeddings of rows that start with the vectors of their contexts: int64[B,L] -> float[B,L,D].

        Args:
            ids: anything at the places of vectors.
            contexts: the groups of each row; none in a plain one.
            noise: as in `predict`.
        """
        counts = torch.tensor([len(groups) for groups in contexts])
        embeds = self.embed(ids)
        if not counts.any():
            return embeds
        vectors = self.blended([group for groups in contexts for group in groups])
        if noise:
            vectors = self._disturbed(vectors, counts)
        place = torch.arange(ids.shape[1]) < counts[:, None]
        return embeds.masked_scatter(place[..., None], vectors)

    def blended(self, groups: Sequence[Group]) -> Tensor:
        """Vectors of groups of words, each about as long as that of a word; empty ones zero: float[groups,D]."""
        ids, real = pad_rows(self.rows([" ".join(group) for group in groups]), self.pad, "right", CPU)
        mask = real[:, :, None].float()
        return (self.embed(ids) * mask).sum(1) / mask.sum(1).clamp(min=1).sqrt()

    def _disturbed(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """Noise on each vector, up to the size of a word on empty ones; one gain for each of the B contexts."""
        spread = self.model.get_input_embeddings().weight.detach().std()
        empty = ~vectors.detach().any(1, keepdim=True)
        level = torch.where(empty, torch.rand(empty.shape), torch.tensor(NOISE))
        low, high = GAIN
        gain = low * (high / low) ** torch.rand(len(counts), 1)
        return (vectors + torch.randn_like(vectors) * spread * level) * gain.repeat_interleave(counts, 0)


class OPTLearner(Learner):
    """A decoder that reads [vectors | </s> | words | turn | turn ...], a turn being [prompt | answer | line break].

    A turn sees the context and itself, and its positions follow the context's: each turn is what the model sees when it
    answers that prompt alone, at a fraction of the price. In a chained document it sees the turns before it as well.
    """

    family = "opt"

    @classmethod
    def create(cls, folder: str, width: int) -> OPTLearner:
        """With random weights."""
        ensure_torchvision()
        from transformers import OPTConfig, OPTForCausalLM

        config = OPTConfig(
            vocab_size=_size(folder), hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width,
            num_hidden_layers=4, num_attention_heads=width // HEAD_WIDTH, max_position_embeddings=256, dropout=0.0,
            attention_dropout=0.0, layerdrop=0.0, init_std=0.066 * (128 / width) ** 0.5, bos_token_id=2,
            eos_token_id=2, pad_token_id=1)
        model = OPTForCausalLM(config)
        decoder = model.model.decoder
        with torch.no_grad():
            decoder.embed_tokens.weight.normal_(0, EMBEDDING_STD)
            decoder.final_layer_norm.weight.fill_(EMBEDDING_STD)  # small logits: the output matrix is the same one
            decoder.embed_positions.weight.copy_(_waves(*decoder.embed_positions.weight.shape))
        for layer in decoder.layers:
            of = layer.self_attn
            _match_and_copy(of.k_proj, of.q_proj, of.v_proj, of.out_proj)
        return cls(folder, model)

    def predict(self, documents: Sequence[Document], noise: bool) -> Predictions:
        """See `Learner`."""
        firsts = accumulate((len(document.turns) for document in documents), initial=0)
        rows = [self._row(document, first) for document, first in zip(documents, firsts, strict=False)]
        ids, _ = pad_rows([row.ids for row in rows], self.pad, "right", CPU)
        parts, _ = pad_rows([row.parts for row in rows], -1, "right", CPU)
        positions, _ = pad_rows([row.positions for row in rows], 0, "right", CPU)
        hidden = self.model.model(inputs_embeds=self.read(ids, [row.groups for row in rows], noise),
                                  attention_mask=_block_mask(parts), position_ids=positions,
                                  use_cache=False).last_hidden_state
        learned = [(number, *token) for number, row in enumerate(rows) for token in row.learned]
        row_of, index, turns = torch.tensor([token[:3] for token in learned]).T
        weights = torch.tensor([token[3] for token in learned])
        return Predictions(self.model.lm_head(hidden[row_of, index - 1]), ids[row_of, index], weights, turns)

    def _row(self, document: Document, first: int) -> _Row:
        """A document whose first turn has the number `first`."""
        groups = groups_of(document.context)
        words = [] if groups else self.rows([str(document.context)])[0]
        row = _Row(groups, [int(self.tokenizer.loaded.bos_token_id)] * (len(groups) + 1) + words)
        row.parts, row.positions = [0] * len(row.ids), list(range(len(row.ids)))
        if groups:
            row.learned.append((len(groups), -1, START_WEIGHT))
        context = len(row.ids)
        prompts, targets = zip(*document.turns, strict=True)
        for number, prompt, target in zip(range(len(prompts)), self.rows(prompts), self.tokenizer.targets(targets),
                                          strict=True):
            answer = len(row.ids) + len(prompt)
            row.ids += [*prompt, *target]
            row.learned += [(answer + at, first + number, weight)
                            for at, weight in enumerate(self.weights_of(target))]
            length = len(prompt) + len(target)
            start = len(row.positions) if document.chained else context
            row.parts += [1 if document.chained else number + 1] * length
            row.positions += range(start, start + length)
        return row


@dataclass
class _Row:
    """Tokens of a document.

    Attributes:
        groups: of the context; the first tokens stand for them.
        ids: of all tokens.
        parts: 0 for the context's, 1 for those of the first turn, and so on; 1 for all turns of a chained document.
        positions: as the model is to see them.
        learned: (index, number of the turn, weight) of each learned token.
    """

    groups: tuple[Group, ...]
    ids: list[int]
    parts: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    learned: list[tuple[int, int, float]] = field(default_factory=list)


def _block_mask(parts: Tensor) -> Tensor:
    """What each token sees: the context and its own turn, up to itself. int64[B,L] -> bool[B,1,L,L]."""
    same = (parts[:, None] == parts[..., None]) | (parts[:, None] == 0)
    return same.tril()[:, None]


class T5Learner(Learner):
    """An encoder that reads [vectors | words, prompt, </s>], a decoder that writes the answer: one row for each turn.

    Turns cannot share what the encoder makes of a context, because the context sees the question in it.
    """

    family = "t5"

    @classmethod
    def create(cls, folder: str, width: int) -> T5Learner:
        """With random weights."""
        ensure_torchvision()
        from transformers import T5Config, T5ForConditionalGeneration

        sizes: dict[str, Any] = {
            "vocab_size": _size(folder), "d_model": width, "d_kv": HEAD_WIDTH, "d_ff": 2 * width, "num_layers": 3,
            "num_decoder_layers": 2, "num_heads": width // HEAD_WIDTH, "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
            "pad_token_id": 0, "eos_token_id": 1}
        model: Any = T5ForConditionalGeneration(T5Config(**sizes))
        prepare(model, FAMILIES["t5"])
        with torch.no_grad():
            model.shared.weight.normal_(0, EMBEDDING_STD)
            model.lm_head.weight.copy_(model.shared.weight * width ** -0.5 / EMBEDDING_STD)  # copies, as OPT's does
            blocks: Any = model.encoder.block
            readers = [block.layer[0].SelfAttention for block in blocks]
            readers += [block.layer[1].EncDecAttention for block in model.decoder.block]
            for of in readers:
                _match_and_copy(of.k, of.q, of.v, of.o)
                of.q.weight *= HEAD_WIDTH ** -0.5  # T5 does not divide its scores by that
        return cls(folder, model)

    def predict(self, documents: Sequence[Document], noise: bool) -> Predictions:
        """See `Learner`."""
        turns = [(document.context, *turn) for document in documents for turn in document.turns]
        read = [prompt if groups_of(context) else f"{context} {prompt}" for context, prompt, _ in turns]
        rows = [[self.pad] * len(groups_of(context)) + ids
                for (context, *_), ids in zip(turns, self.tokenizer.prompts(read), strict=True)]
        targets = self.tokenizer.targets([target for *_, target in turns])
        order = sorted(range(len(turns)), key=lambda at: (len(targets[at]) > LONG_ANSWER, len(rows[at])))
        parts = [self._predict([rows[at] for at in chosen], [targets[at] for at in chosen],
                               [groups_of(turns[at][0]) for at in chosen], chosen, noise)
                 for chosen in (order[start:start + ROWS] for start in range(0, len(order), ROWS))]
        return Predictions(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _predict(self, rows: list[list[int]], targets: list[list[int]], contexts: list[tuple[Group, ...]],
                 turns: list[int], noise: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of `Predictions` for rows of similar length."""
        source, mask = pad_rows(rows, self.pad, "right", CPU)
        ids, real = pad_rows(targets, self.pad, "right", CPU)
        start = torch.full_like(ids[:, :1], self.model.config.decoder_start_token_id)
        logits = self.model(inputs_embeds=self.read(source, contexts, noise), attention_mask=mask.long(),
                            decoder_input_ids=torch.cat([start, ids[:, :-1]], 1), use_cache=False).logits
        weights = torch.tensor([weight for target in targets for weight in self.weights_of(target)])
        return logits[real], ids[real], weights, torch.tensor(turns).repeat_interleave(real.sum(1))


def _waves(count: int, width: int) -> Tensor:
    """Sines and cosines of positions, small beside words: float[count,D]."""
    angles = torch.arange(count)[:, None] / 1000 ** (torch.arange(0, width, 2) / width)
    return 0.1 * torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def groups_of(context: str | tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups of a blended context; none in a plain one."""
    return () if isinstance(context, str) else context


@torch.no_grad()
def _match_and_copy(key: nn.Linear, query: nn.Linear, value: nn.Linear, out: nn.Linear) -> None:
    """Random weights that let attention find equal words from the first step, and copy what it finds."""
    width = len(key.weight)
    scale = width ** -0.5
    key.weight.normal_(0, 0.7 * scale)
    query.weight.copy_(key.weight + 0.2 * scale * torch.randn(width, width))
    value.weight.normal_(0, scale)
    out.weight.copy_(0.5 * value.weight.T + 0.03 * torch.randn(width, width))


LEARNERS: dict[str, type[OPTLearner] | type[T5Learner]] = {"opt": OPTLearner, "t5": T5Learner}


def _size(folder: str) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))
