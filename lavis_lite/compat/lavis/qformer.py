"""The Q-Former under LAVIS' names: `Qformer.bert(...)`, BERT's module tree, BERT's parameter names.

It may be taken apart: `output` and `intermediate` of a layer may be None, and so may the word embeddings and `cls`.
Attentions may be replaced, and weights copied from BERT's half to that of the queries. The mathematics is that of
`lavis_lite.models.qformer` (a test compares them); that one is faster.

Axes: B batch, Q queries, L text tokens, S = Q + L, P image patches. D width, Dv image feature width, H heads, T tokens
looked at, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.checkpoints.formats.bert import bert_state
from lavis_lite.compat.lavis.qformer_layers import BertConfig, BertEmbeddings, BertLayer, BertOnlyMLMHead, Past
from lavis_lite.compat.lavis.sizes import current
from lavis_lite.errors import CheckpointError, ContractError, DataError
from lavis_lite.models.decoding import Decoding, decode
from lavis_lite.models.outputs import Output
from lavis_lite.models.provenance import WeightSource, mark_loaded
from lavis_lite.models.text_tokens import SpecialIds


@dataclass(eq=False)
class BertOutputs(Output):
    """What `Qformer.bert` returns: last_hidden_state float[B,S,D]; past_key_values with use_cache."""

    last_hidden_state: Tensor
    past_key_values: tuple[Past, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """before the first layer and after each, with output_hidden_states"""
    pooler_output = None

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state, self.past_key_values)[key] if isinstance(key, int) else super().__getitem__(key)


@dataclass(eq=False)
class LMOutputs(Output):
    """What `Qformer` returns: logits float[B,L,V]; loss float[], or float[B], if labels were given."""

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: tuple[Past, ...] | None = None


class BertEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, number) for number in range(config.num_hidden_layers))


class BertModel(nn.Module):
    """Embeddings and layers: `Qformer.bert`."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                position_ids: Tensor | None = None, head_mask: None = None, query_embeds: Tensor | None = None,
                encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
                past_key_values: Any = None, use_cache: bool | None = None, output_attentions: bool | None = None,
                output_hidden_states: bool | None = None, return_dict: bool = True, is_decoder: bool = False,
                **unused: Any) -> Any:
        """Run queries, text, or both.

        Args:
            input_ids: int64[B,L] or None.
            attention_mask: int[B,Q+L] (past tokens in front), or int[B,S,T]; None: all are visible.
            position_ids: int64[B,L]; None: one after another.
            query_embeds: float[B,Q,D] or None.
            encoder_hidden_states: image features float[B,P,Dv].
            encoder_attention_mask: int[B,P]; None: all.
            past_key_values: of an earlier call with use_cache.
            use_cache: return keys and values.
            output_hidden_states: return the hidden states of every layer.
            return_dict: False: a tuple.
            is_decoder: text tokens see the queries and the text before them; queries see queries.
            head_mask, unused: of LAVIS' signature; without effect.

        Raises:
            ContractError: `output_attentions` is true.
        """
        if output_attentions:
            raise ContractError("Qformer.bert: output_attentions is not carried, as torch's attention keeps no "
                                "weights. Replace `attention.self` of a layer by a module that keeps them.")
        past_length = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        queries = 0 if query_embeds is None else query_embeds.shape[1]
        text_past = past_length - self.config.query_length if past_length else 0
        hidden = self.embeddings(input_ids, position_ids, query_embeds, max(text_past, 0))
        mask = extended_mask(attention_mask, hidden, past_length, queries, is_decoder)
        image_mask = None if encoder_attention_mask is None else additive(encoder_attention_mask[:, None, None], hidden)
        presents: list[Past] = []
        states = [hidden]
        for number, layer in enumerate(self.encoder.layer):
            past = None if past_key_values is None else past_key_values[number]
            hidden, present = layer(hidden, mask, encoder_hidden_states, image_mask, past, queries)
            presents.append(present)
            states += [hidden] if output_hidden_states else []
        found = BertOutputs(hidden, tuple(presents) if use_cache else None,
                            tuple(states) if output_hidden_states else None)
        return found if return_dict else tuple(found.values())


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where a token is visible, the lowest number of the type where not."""
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~visible.bool(), torch.finfo(like.dtype).min)


def extended_mask(given: Tensor | None, hidden: Tensor, past: int, queries: int, is_decoder: bool) -> Tensor | None:
    """Additive mask float[B,1,S,T] of the tokens `hidden` float[B,S,D] after `past` earlier ones."""
    batch, length = hidden.shape[:2]
    if given is None and not is_decoder:
        return None
    if given is None:
        given = torch.ones(batch, past + length, dtype=torch.long, device=hidden.device)
    if given.ndim == 3:
        return additive(given[:, None], hidden)
    if given.shape[1] < past + length:  # LAVIS' masks leave the queries in the past out
        given = F.pad(given, (past + length - given.shape[1], 0), value=1)
    seen = given.bool()[:, None, None, :]
    if not is_decoder:
        return additive(seen, hidden)
    row = torch.arange(length, device=hidden.device)[:, None]
    column = torch.arange(past + length, device=hidden.device)[None] - past
    causal = torch.where(row < queries, column < queries, column <= row)
    return additive(causal[None, None] & seen, hidden)


def initialise_from_bert(qformer: nn.Module, source: str) -> None:
    """Copy every tensor of a BERT with its masked-word head; new words and cross-attention keep their random start.

    The queries' half is left to the Q-Former's maker.

    Raises:
        CheckpointError: it cannot be fetched, or has tensors of other shapes.
    """
    weights, copied = bert_state(source), []
    for name, tensor in qformer.state_dict().items():
        value = weights.get(name)
        if value is None or name.endswith("position_ids"):
            continue
        if value.shape[1:] != tensor.shape[1:] or len(value) > len(tensor):
            raise CheckpointError(f"model.qformer_weights: {name} has shape {tuple(tensor.shape)}, {source!r} "
                                  f"gives {tuple(value.shape)}; choose sizes of that BERT, or qformer_weights: null.")
        with torch.no_grad():
            tensor[:len(value)].copy_(value)
        copied.append(name)
    mark_loaded(qformer, WeightSource("", "bert", source), copied)


# text -----------------------------------------------------------------------------------------------------------------
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


class BertLMHeadModel(nn.Module):
    """The Q-Former that `init_Qformer` returns: `bert`, and `cls`, its language-model head, which may be None."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.cls: BertOnlyMLMHead | None = BertOnlyMLMHead(config)
        self.apply(self._initialise)
        self.tie_weights()

    @classmethod
    def from_pretrained(cls, name: str, config: BertConfig | None = None, **unused: Any) -> BertLMHeadModel:
        """A Q-Former with BERT's weights in its text half and shared parts; see `sizes.qformer_weights`."""
        model = cls(config or BertConfig.from_pretrained(name))
        if (source := current().qformer_weights) is not None:
            initialise_from_bert(model, source)
        return model

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def tie_weights(self) -> None:
        """Make the head's output layer the word embeddings."""
        words = self.bert.embeddings.word_embeddings
        if self.cls is not None and words is not None:
            self.cls.predictions.decoder.weight = words.weight

    def get_input_embeddings(self) -> nn.Embedding | None:
        """The word embeddings."""
        return self.bert.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head's output layer."""
        return None if self.cls is None else self.cls.predictions.decoder

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Another number of words: the first rows stay, new ones are random."""
        old = self.bert.embeddings.word_embeddings
        if old is None:
            raise DataError("this Q-Former has no word embeddings to resize.")
        words = nn.Embedding(new_num_tokens, old.embedding_dim, old.padding_idx).to(old.weight)
        nn.init.normal_(words.weight, std=self.config.initializer_range)
        kept = min(new_num_tokens, old.num_embeddings)
        words.weight.data[:kept] = old.weight.data[:kept]
        self.bert.embeddings.word_embeddings, self.config.vocab_size = words, new_num_tokens
        if self.cls is not None:
            head = self.cls.predictions
            bias = torch.zeros(new_num_tokens).to(head.bias)
            bias[:kept] = head.bias.data[:kept]
            head.bias = head.decoder.bias = nn.Parameter(bias)
            head.decoder.out_features = new_num_tokens
        self.tie_weights()
        return words

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                labels: Tensor | None = None, query_embeds: Tensor | None = None, past_key_values: Any = None,
                use_cache: bool = True, return_dict: bool = True, return_logits: bool = False, is_decoder: bool = True,
                reduction: str = "mean", **inputs: Any) -> Any:
        """Text generation after the queries: logits, and the loss of the next tokens.

        Args:
            labels: int64[B,L], the tokens themselves; -100: not learned. Label smoothing is 0.1, as in LAVIS.
            return_logits: only the logits of all positions but the last.
            reduction: of the loss: mean, or none (a sum for each sample).
            input_ids, attention_mask, query_embeds, past_key_values, use_cache, is_decoder, inputs: of `BertModel`.
        """
        if self.cls is None:
            raise DataError("this Q-Former has no language-model head: its `cls` was set to None.")
        found = self.bert(input_ids, attention_mask, query_embeds=query_embeds, past_key_values=past_key_values,
                          use_cache=use_cache and labels is None, is_decoder=is_decoder, **inputs)
        hidden = found.last_hidden_state
        if query_embeds is not None and past_key_values is None:
            hidden = hidden[:, query_embeds.shape[1]:]
        logits = self.cls(hidden)
        if return_logits:
            return logits[:, :-1]
        result = LMOutputs(logits, None if labels is None else lm_loss(logits, labels, reduction),
                           found.past_key_values)
        return result if return_dict else tuple(result.values())

    generate = generate


def lm_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Label-smoothed loss of the next tokens: float[B,L,V], int64[B,L] -> float[], or float[B] with reduction none."""
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), label_smoothing=0.1,
                           reduction=reduction)
    return loss.view(len(logits), -1).sum(1) if reduction == "none" else loss
