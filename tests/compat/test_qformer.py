"""The Q-Former under LAVIS' names: the package's numbers, LAVIS' parameter names, and what people do to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.compat.lavis import sizes
from lavis_lite.compat.lavis.blip2 import Blip2Base
from lavis_lite.compat.lavis.qformer import BertLMHeadModel
from lavis_lite.errors import ContractError, DataError
from lavis_lite.models.blip2 import objectives
from lavis_lite.models.qformer import QFormer, QFormerConfig
from tests.compat.helpers import lavis_tensors

WIDTH, QUERIES, VISION, WORDS = 32, 4, 24, 60
SMALL = {"qformer_hidden_size": WIDTH, "qformer_layers": 3, "qformer_heads": 4, "qformer_intermediate_size": 48,
         "qformer_max_positions": 16, "qformer_dropout": 0.0, "qformer_weights": None, "qformer_initializer_range": 0.2}


@pytest.fixture
def small() -> Iterator[None]:
    torch.manual_seed(0)
    with sizes(**SMALL):
        yield


@pytest.fixture
def both(small: None) -> tuple[BertLMHeadModel, QFormer]:
    """One of each kind, with the same weights."""
    ours = QFormer(QFormerConfig(WIDTH, 3, 4, 48, WORDS, 16, QUERIES, 2, VISION, dropout=0.0, initializer_range=0.2))
    theirs, _ = Blip2Base.init_Qformer(QUERIES, VISION)
    theirs.resize_token_embeddings(WORDS)
    tensors = lavis_tensors({f"qformer.{name}": tensor for name, tensor in ours.state_dict().items()})
    found = theirs.load_state_dict({name.removeprefix("Qformer."): tensor for name, tensor in tensors.items()})
    assert not found.missing_keys and not found.unexpected_keys
    return theirs, ours


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, image, ids and mask."""
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return torch.randn(3, QUERIES, WIDTH), torch.randn(3, 5, VISION), torch.randint(1, WORDS, (3, 6)), mask


def ones(queries: Tensor) -> Tensor:
    return torch.ones(queries.shape[:2], dtype=torch.long)


def test_queries_look_at_an_image(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, ours = both
    queries, image, _, _ = inputs()
    found = theirs.bert(query_embeds=queries, encoder_hidden_states=image, encoder_attention_mask=ones(image),
                        return_dict=True)
    torch.testing.assert_close(found.last_hidden_state, ours(queries, image=image).query)
    assert found[0] is found.last_hidden_state and found["last_hidden_state"] is found.last_hidden_state


def test_queries_and_text_together(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, ours = both
    queries, image, ids, mask = inputs()
    found = theirs.bert(ids, attention_mask=torch.cat([ones(queries), mask], 1), query_embeds=queries,
                        encoder_hidden_states=image, return_dict=True).last_hidden_state
    wanted = ours(queries, ids, mask, image, "bidirectional")
    torch.testing.assert_close(found[:, :QUERIES], wanted.query)
    torch.testing.assert_close(found[:, QUERIES:][mask.bool()], wanted.text[mask.bool()])


def test_text_alone(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, ours = both
    _, _, ids, mask = inputs()
    found = theirs.bert(ids, attention_mask=mask, return_dict=True).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], ours(text_ids=ids, text_mask=mask).text[mask.bool()])


@pytest.mark.parametrize("cached", [True, False], ids=["behind the queries' cache", "in one pass"])
def test_text_generation_and_its_loss(both: tuple[BertLMHeadModel, QFormer], cached: bool) -> None:
    theirs, ours = both
    queries, image, ids, mask = inputs()
    labels = ids.masked_fill(mask == 0, -100)
    seen = torch.cat([ones(queries), mask], 1)
    if cached:
        first = theirs.bert(query_embeds=queries, encoder_hidden_states=image, use_cache=True, return_dict=True)
        found = theirs(ids, attention_mask=seen, past_key_values=first.past_key_values, return_dict=True, labels=labels)
    else:
        found = theirs(ids, attention_mask=seen, query_embeds=queries, encoder_hidden_states=image, labels=labels)
    text = ours(queries, ids, mask, image, "multi_modal_causal").text
    logits = ours.logits(text)
    torch.testing.assert_close(found.logits[mask.bool()], logits[mask.bool()])
    targets = labels[:, 1:].flatten()
    wanted = objectives.lm_sum_plain(ours.lm_head(text[:, :-1].flatten(0, 1)), ours.embeddings.word_embeddings.weight,
                                     ours.lm_head.bias, targets)
    torch.testing.assert_close(found.loss, wanted / (targets != -100).sum())
    assert found["loss"] is found.loss


def test_the_surgery_of_stage_2(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, _ = both
    queries, image, ids, _ = inputs()
    wanted = theirs.bert(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    theirs.cls = None
    theirs.bert.embeddings.word_embeddings = theirs.bert.embeddings.position_embeddings = None
    for layer in theirs.bert.encoder.layer:
        layer.output = None
        layer.intermediate = None
    torch.testing.assert_close(theirs.bert(query_embeds=queries, encoder_hidden_states=image).last_hidden_state, wanted)
    names = [name for name, _ in theirs.named_parameters()]
    assert not [name for name in names if "word_emb" in name or ".intermediate." in name or name.startswith("cls.")]
    assert [name for name in names if ".intermediate_query." in name]
    with pytest.raises(DataError, match="no text half"):
        theirs.bert(ids)


def test_a_layer_s_attention_may_be_replaced(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, _ = both
    queries, image, _, _ = inputs()

    class Loud(type(theirs.bert.encoder.layer[0].attention.self)):
        calls = 0

        def forward(self, *args: object, **kwargs: object) -> object:
            type(self).calls += 1
            return super().forward(*args, **kwargs)

    theirs.bert.encoder.layer[1].attention.self.__class__ = Loud
    theirs.bert(query_embeds=queries, encoder_hidden_states=image)
    assert Loud.calls == 1


def test_an_attention_of_lavis_signature_may_take_its_place(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, _ = both
    queries, image, _, _ = inputs()
    wanted = theirs.bert(query_embeds=queries, encoder_hidden_states=image, output_hidden_states=True)
    assert len(wanted.hidden_states) == len(theirs.bert.encoder.layer) + 1 and wanted.pooler_output is None
    torch.testing.assert_close(wanted.hidden_states[-1], wanted.last_hidden_state)

    class Plain(torch.nn.Module):
        def __init__(self, attn: Any) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, hidden_states: Any, attention_mask: Any = None, head_mask: Any = None,
                    encoder_hidden_states: Any = None, encoder_attention_mask: Any = None,
                    past_key_value: Any = None, output_attentions: bool = False) -> Any:
            attn, source = self.attn, hidden_states if encoder_hidden_states is None else encoder_hidden_states
            key, value = (attn.transpose_for_scores(part(source)) for part in (attn.key, attn.value))
            scores = attn.transpose_for_scores(attn.query(hidden_states)) @ key.transpose(-1, -2)
            assert head_mask is None and attn.position_embedding_type == "absolute"
            mixed = (scores / attn.attention_head_size ** 0.5).softmax(-1) @ value
            return mixed.permute(0, 2, 1, 3).reshape(*hidden_states.shape[:2], attn.all_head_size), (key, value)

    for layer in theirs.bert.encoder.layer:
        layer.attention.self = Plain(layer.attention.self)
        if layer.has_cross_attention:
            layer.crossattention.self = Plain(layer.crossattention.self)
    found = theirs.bert(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    torch.testing.assert_close(found, wanted.last_hidden_state)
    with pytest.raises(ContractError, match="output_attentions is not carried"):
        theirs.bert(query_embeds=queries, encoder_hidden_states=image, output_attentions=True)


def test_resized_words_stay_tied(both: tuple[BertLMHeadModel, QFormer]) -> None:
    theirs, _ = both
    before = theirs.bert.embeddings.word_embeddings.weight.clone()
    theirs.resize_token_embeddings(WORDS + 3)
    words = theirs.bert.embeddings.word_embeddings.weight
    assert words.shape[0] == WORDS + 3 and torch.equal(words[:WORDS], before)
    assert theirs.cls.predictions.decoder.weight is words and theirs.cls.predictions.bias.shape == (WORDS + 3,)
    assert theirs(torch.tensor([[1, WORDS + 2]])).logits.shape == (1, 2, WORDS + 3)


def test_bert_s_weights_fill_all_but_queries_and_cross_attention(small: None, tmp_path: object) -> None:
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(BertConfig(vocab_size=30522, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
                                      intermediate_size=48, max_position_embeddings=16))
    bert.save_pretrained(tmp_path)
    with sizes(qformer_weights=str(tmp_path)):
        theirs, queries = Blip2Base.init_Qformer(QUERIES, VISION)
    state, given = theirs.state_dict(), bert.state_dict()
    same = {name for name in state if name in given and torch.equal(state[name], given[name])}
    rest = {name for name in state if name not in same and "_query." not in name and "crossattention" not in name}
    assert rest == {"bert.embeddings.position_ids"} and queries.shape == (1, QUERIES, WIDTH)
