"""The Q-Former: masks, passes, caches, sizes, and agreement with transformers."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.models.qformer.model import QFormer, QFormerConfig, attention_mask, stage1_mask
from lavis_lite.torchvision_shim import ensure_torchvision
from tests.models.stage1_helpers import TINY

ensure_torchvision()  # transformers imports torchvision with its BLIP-2
from transformers import Blip2QFormerConfig, Blip2QFormerModel  # noqa: E402

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
PICTURES = {
    "uni_modal": ["11...", "11...", "..111", "..111", "..111"],
    "multi_modal_causal": ["11...", "11...", "111..", "1111.", "11111"],
    "bidirectional": ["11111", "11111", "11111", "11111", "11111"],
}


def picture(mask: torch.Tensor) -> list[str]:
    return ["".join("1" if seen else "." for seen in row) for row in mask.tolist()]


@pytest.mark.parametrize("pattern", list(PICTURES))
def test_attention_patterns(pattern: str) -> None:
    mask = attention_mask(pattern, 2, MASK)
    assert mask.shape == (2, 1, 5, 5)
    assert picture(mask[0, 0]) == PICTURES[pattern]
    assert picture(mask[1, 0]) == [row[:4] + "." for row in PICTURES[pattern]]  # padding is never seen


def test_attention_mask_of_queries_alone_is_none_and_unknown_patterns_are_refused() -> None:
    assert attention_mask("uni_modal", 4, None) is None
    with pytest.raises(ValueError, match="sideways"):
        attention_mask("sideways", 2, MASK)  # type: ignore[arg-type]


def test_stage1_mask_lays_two_patterns_side_by_side() -> None:
    assert picture(stage1_mask(2, MASK)[0, 0]) == [
        "11.....", "11.....", "..111..", "..111..", "..111..", "11...1.", "11...11"]
    short = torch.tensor([[1, 1, 0, 0]])
    padded = picture(stage1_mask(2, short)[0, 0])
    assert padded[2] == "..11....." and padded[8] == "11....11."


@pytest.fixture()
def qformer() -> QFormer:
    torch.manual_seed(0)
    model = QFormer(TINY).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(batch: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(batch, 5, 32, generator=generator, dtype=torch.float64),
            torch.randint(3, 60, (batch, length), generator=generator),
            torch.randn(batch, 4, 24, generator=generator, dtype=torch.float64))


def test_uni_modal_pass_equals_two_separate_passes(qformer: QFormer) -> None:
    query, ids, image = inputs()
    together = qformer(query, ids, image=image, pattern="uni_modal")
    torch.testing.assert_close(together.query, qformer(query, image=image).query, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.text, qformer(text_ids=ids).text, rtol=1e-10, atol=1e-12)


def test_causal_text_does_not_see_what_follows(qformer: QFormer) -> None:
    query, ids, image = inputs()
    changed = ids.clone()
    changed[:, 4] = 7
    first, second = (qformer(query, text, image=image, pattern="multi_modal_causal") for text in (ids, changed))
    torch.testing.assert_close(first.text[:, :4], second.text[:, :4], rtol=0, atol=0)
    torch.testing.assert_close(first.query, second.query, rtol=0, atol=0)
    assert (first.text[:, 4:] - second.text[:, 4:]).abs().amax() > 1e-3


def test_cache_gives_what_the_causal_pass_gives(qformer: QFormer) -> None:
    query, ids, image = inputs()
    whole = qformer(query, ids, image=image, pattern="multi_modal_causal").text
    cache = qformer(query, image=image, use_cache=True).cache
    parts = []
    for piece in (ids[:, :1], ids[:, 1:4], ids[:, 4:]):  # one token, several, several
        output = qformer(text_ids=piece, cache=cache, use_cache=True)
        parts.append(output.text)
        cache = output.cache
    assert cache.text_length == 6
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)


def test_padding_changes_nothing(qformer: QFormer) -> None:
    query, ids, image = inputs()
    mask = torch.ones_like(ids)
    short = qformer(query, ids, mask, image, "bidirectional")
    longer = qformer(query, torch.cat([ids, ids[:, :2]], 1), torch.nn.functional.pad(mask, (0, 2)), image)
    torch.testing.assert_close(short.query, longer.query, rtol=1e-10, atol=1e-12)


def test_keys_and_values_are_shared_selected_and_folded(qformer: QFormer) -> None:
    query, ids, image = inputs(batch=4)
    norm = torch.nn.LayerNorm(24).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    folded = qformer.precompute_kv(torch.nn.functional.layer_norm(image, (24,)), norm)
    plain = qformer(query, image=norm(image)).query
    torch.testing.assert_close(qformer(query, image=folded).query, plain, rtol=1e-10, atol=1e-12)
    rows = torch.tensor([2, 0, 0, 3])
    many = qformer(torch.cat([query] * 3), torch.cat([ids] * 3), image=[folded.repeated(2), folded.select(rows)])
    for place, (start, features) in enumerate(((0, image), (4, image), (8, image[rows]))):
        one = qformer(query, ids, image=norm(features)).query
        torch.testing.assert_close(many.query[start:start + 4], one, rtol=1e-10, atol=1e-12, msg=f"group {place}")


def test_output_rows_limit_the_last_layer_only(qformer: QFormer) -> None:
    query, ids, image = inputs()
    hidden = qformer.embed(query, ids)
    mask = attention_mask("bidirectional", 5, torch.ones_like(ids))
    kv = (qformer.precompute_kv(image),)
    whole = qformer.run_layers(hidden, 5, mask, kv)
    part = qformer.run_layers(hidden, 5, mask, kv, return_positions=(5, (slice(0, 6), slice(8, 10))))
    torch.testing.assert_close(part, torch.cat([whole[:, :6], whole[:, 8:10]], 1), rtol=1e-10, atol=1e-12)


def test_without_text_half_only_the_query_half_is_left() -> None:
    names = dict(QFormer(QFormerConfig(**{**vars(TINY), "with_text": False})).named_parameters())
    assert not [name for name in names if "text_ffn" in name or "word_" in name or "lm_head" in name]
    assert "embeddings.norm.weight" in names and "layers.0.query_ffn.up.weight" in names


@pytest.mark.parametrize(("with_text", "count"), [(True, 186_282_811), (False, 105_137_664)])
def test_parameter_counts_of_the_real_sizes(with_text: bool, count: int) -> None:
    with torch.device("meta"):
        model = QFormer(QFormerConfig(with_text=with_text))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def hugging_face_twin(qformer: QFormer, use_text: bool) -> Blip2QFormerModel:
    """transformers' Q-Former with the same weights."""
    cfg = qformer.cfg
    twin = Blip2QFormerModel(Blip2QFormerConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.hidden_size, num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads, intermediate_size=cfg.intermediate_size, layer_norm_eps=1e-12,
        encoder_hidden_size=cfg.vision_width, cross_attention_frequency=2, use_qformer_text_input=use_text,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).double().eval()
    names = {".self_attention.norm.": ".attention.output.LayerNorm.", ".self_attention.output.":
             ".attention.output.dense.", ".self_attention.": ".attention.attention.",
             ".cross_attention.norm.": ".crossattention.output.LayerNorm.",
             ".cross_attention.output.": ".crossattention.output.dense.",
             ".cross_attention.": ".crossattention.attention.", ".query_ffn.up.": ".intermediate_query.dense.",
             ".query_ffn.down.": ".output_query.dense.", ".query_ffn.norm.": ".output_query.LayerNorm.",
             ".text_ffn.up.": ".intermediate.dense.", ".text_ffn.down.": ".output.dense.",
             ".text_ffn.norm.": ".output.LayerNorm."}
    state = {}
    for name, value in qformer.state_dict().items():
        if name.startswith("embeddings.norm"):
            state[name.replace("embeddings.norm", "layernorm")] = value
        elif name.startswith("layers."):
            new = "encoder." + name.replace("layers.", "layer.", 1)
            found = next(old for old in names if old in new)
            state[new.replace(found, names[found])] = value
    wanted = twin.state_dict()
    twin.load_state_dict({name: value for name, value in state.items() if name in wanted})
    return twin


@pytest.mark.parametrize("with_text", [True, False])
def test_agrees_with_transformers(qformer: QFormer, with_text: bool) -> None:
    query, ids, image = inputs()
    twin = hugging_face_twin(qformer, with_text)
    if not with_text:
        expected = twin(query_embeds=query, encoder_hidden_states=image).last_hidden_state
        torch.testing.assert_close(qformer(query, image=image).query, expected, rtol=0, atol=1e-5)
        return
    embeds = torch.cat([query, qformer.embeddings.words(ids)], 1)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 9:] = 0
    expected = twin(query_embeds=embeds, query_length=5, attention_mask=mask, encoder_hidden_states=image)
    ours = qformer(query, ids, mask[:, 5:], image, "bidirectional")
    torch.testing.assert_close(ours.query, expected.last_hidden_state[:, :5], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.text[0], expected.last_hidden_state[0, 5:], rtol=0, atol=1e-5)
