"""The two mini language models while they learn: documents to tensors, tensors to the likelihood of targets.

Axes: B documents, V blended vectors, W words of a group, L tokens read, T tokens to predict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_lite.models.language.build import prepare
from lavis_lite.models.language.families import FAMILIES
from lavis_lite.models.language.tokens import LanguageTokenizer, pad_rows
from lavis_lite.torchvision_shim import ensure_torchvision
from tools.documents import Document, split_turn

WIDTH = 160
READ_WEIGHT = 0.1
"""Weight in the decoder-only model's loss of the words it reads, against 1 for those of a target."""
NOISE = 0.15
"""Of a blended vector, relative to the spread of word embeddings."""
GAIN = (0.5, 2.5)
"""Range of the factor on a document's blended vectors: a soft prompt may have any length."""


@dataclass
class Predictions:
    """Of a batch: logits float[B,T,vocabulary], the ids to predict int64[B,T], and their weights float[B,T]."""

    logits: Tensor
    ids: Tensor
    weights: Tensor


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
    def predict(self, documents: Sequence[Document], places: Sequence[float], noise: bool) -> Predictions:
        """Run the model on documents of the same number of blended vectors.

        Args:
            documents: B of them.
            places: B numbers in [0, 1) that choose what is read and what is written, where there is a choice.
            noise: whether blended vectors are disturbed (training).
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings: int64[...] -> float[...,D]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def blended(self, documents: Sequence[Document], noise: bool) -> Tensor:
        """Vectors of groups of words, each as long as that of a word on average; empty ones zero: float[B,V,D]."""
        vectors = len(documents[0].blended)
        groups = [" ".join(group) for document in documents for group in document.blended]
        ids, real = pad_rows(self.tokenizer.targets(groups, end=False), self.pad, "right", torch.device("cpu"))
        mask = real[:, :, None].float()
        mixed = (self.embed(ids) * mask).sum(1) / mask.sum(1).clamp(min=1).sqrt()
        mixed = mixed.reshape(len(documents), vectors, -1)
        if not noise:
            return mixed
        spread = self.model.get_input_embeddings().weight.detach().std()
        empty = (~real.any(1)).reshape(len(documents), vectors, 1)
        level = torch.where(empty, torch.rand(empty.shape), torch.tensor(NOISE))
        low, high = GAIN
        gain = low * (high / low) ** torch.rand(len(documents), 1, 1)
        return (mixed + torch.randn_like(mixed) * spread * level) * gain

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without special tokens."""
        return self.tokenizer.targets(texts, end=False)


class OPTLearner(Learner):
    """A decoder that reads [vectors | </s> | context | prompt, target, line break | prompt, target, line break ...]."""

    family = "opt"

    @classmethod
    def create(cls, folder: str) -> OPTLearner:
        """With random weights."""
        ensure_torchvision()
        from transformers import OPTConfig, OPTForCausalLM

        config = OPTConfig(
            vocab_size=_size(folder), hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=4 * WIDTH,
            num_hidden_layers=4, num_attention_heads=5, max_position_embeddings=256, dropout=0.0,
            attention_dropout=0.0, layerdrop=0.0, init_std=0.06, bos_token_id=2, eos_token_id=2, pad_token_id=1)
        model = OPTForCausalLM(config)
        with torch.no_grad():  # embeddings as long as the vectors of an untrained projection, logits small all the same
            model.get_input_embeddings().weight.normal_(0, 0.2)
            model.model.decoder.final_layer_norm.weight.fill_(0.2)
        return cls(folder, model)

    def predict(self, documents: Sequence[Document], places: Sequence[float], noise: bool) -> Predictions:
        """See `Learner`."""
        rows, weights = zip(*(self._row(document) for document in documents), strict=True)
        ids, real = pad_rows(rows, self.pad, "right", torch.device("cpu"))
        weight = torch.zeros(ids.shape)
        for number, row in enumerate(weights):
            weight[number, :len(row)] = torch.tensor(row)
        embeds, count = self.embed(ids), 0
        if documents[0].blended:
            soft = self.blended(documents, noise)
            embeds, count = torch.cat([soft, embeds], 1), soft.shape[1]
        mask = torch.cat([real.new_ones(len(rows), count), real], 1).long()
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits[:, count:-1]
        return Predictions(logits, ids[:, 1:], weight[:, 1:])

    def _row(self, document: Document) -> tuple[list[int], list[float]]:
        prompts, targets = zip(*document.turns, strict=True)
        read, written = self.rows(prompts), self.tokenizer.targets(targets)
        ids = [int(self.tokenizer.loaded.bos_token_id), *self.rows([document.context])[0]]
        weights = [READ_WEIGHT] * len(ids)
        for first, second in zip(read, written, strict=True):
            ids += [*first, *second]
            weights += [*[READ_WEIGHT] * len(first), *[1.0] * len(second)]
        return ids, weights


class T5Learner(Learner):
    """An encoder that reads [vectors | context, prompt, </s>] and a decoder that writes the target."""

    family = "t5"

    @classmethod
    def create(cls, folder: str) -> T5Learner:
        """With random weights."""
        ensure_torchvision()
        from transformers import T5Config, T5ForConditionalGeneration

        sizes: dict[str, Any] = {
            "vocab_size": _size(folder), "d_model": WIDTH, "d_kv": 32, "d_ff": 2 * WIDTH, "num_layers": 3,
            "num_decoder_layers": 3, "num_heads": 5, "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
        config = T5Config(**sizes)
        model = T5ForConditionalGeneration(config)
        prepare(model, FAMILIES["t5"])
        with torch.no_grad():
            model.lm_head.weight.normal_(0, WIDTH ** -0.5)
        return cls(folder, model)

    def predict(self, documents: Sequence[Document], places: Sequence[float], noise: bool) -> Predictions:
        """See `Learner`."""
        turns = [split_turn(document, place) for document, place in zip(documents, places, strict=True)]
        read = [f"{document.context} {prompt}" for document, (prompt, _) in zip(documents, turns, strict=True)]
        device = torch.device("cpu")
        source, source_real = pad_rows(self.tokenizer.prompts(read), self.pad, "right", device)
        ids, real = pad_rows(self.tokenizer.targets([target for _, target in turns]), self.pad, "right", device)
        embeds = self.embed(source)
        if documents[0].blended:
            embeds = torch.cat([self.blended(documents, noise), embeds], 1)
        mask = torch.cat([real.new_ones(len(ids), embeds.shape[1] - source.shape[1]), source_real], 1).long()
        start = torch.full_like(ids[:, :1], self.model.config.decoder_start_token_id)
        output = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False,
                            decoder_input_ids=torch.cat([start, ids[:, :-1]], 1))
        return Predictions(output.logits, ids, real.float())


LEARNERS: dict[str, type[OPTLearner] | type[T5Learner]] = {"opt": OPTLearner, "t5": T5Learner}


def _size(folder: str) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))
