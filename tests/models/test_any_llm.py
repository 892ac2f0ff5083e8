"""The arch `blip2_llm`: any language model, what it is found from its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lavis_lite import load_model
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.config.compose import compose, model_sections
from lavis_lite.errors import ConfigError
from lavis_lite.models.language.decoder_only import DecoderOnly
from lavis_lite.models.language.encoder_decoder import EncoderDecoder
from lavis_lite.preflight import check

SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "vocab_size": 1068, "hidden_size": 32, "intermediate_size": 64,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 256},
    "bart": {"model_type": "bart", "vocab_size": 1068, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "max_position_embeddings": 256},
}


def samples() -> dict[str, Any]:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return {"image": image, "text_input": ["a red ball on a table", "a blue cup"]}


@pytest.mark.parametrize(("model_type", "named", "kind"), [("mini_opt", "blip2_opt", DecoderOnly),
                                                           ("mini_t5", "blip2_t5", EncoderDecoder)])
def test_the_mini_types_write_what_the_named_archs_write(model_type: str, named: str, kind: type) -> None:
    model, other = load_model("blip2_llm", model_type, is_eval=True), load_model(named, "mini", is_eval=True)
    assert isinstance(model.language_model, kind)  # type: ignore[attr-defined]
    options = {"num_beams": 1, "max_new_tokens": 12}
    answers = [one.generate(samples(), **options) for one in (model, other)]  # type: ignore[attr-defined]
    assert answers[0] == answers[1] and all(answers[0])


@pytest.mark.parametrize(("name", "kind", "splits"), [("qwen2", DecoderOnly, False), ("bart", EncoderDecoder, True)])
def test_a_language_model_is_named_or_sized_and_trains(name: str, kind: type, splits: bool) -> None:
    section, _ = model_sections("blip2_llm", "mini_opt")
    section = dataclasses.replace(section, pretrained="mini/stage1", llm_args=SIZES[name], llm_model="",  # type: ignore[call-arg]
                                  llm_tokenizer="mini/opt")
    torch.manual_seed(0)
    model = build_model(section)
    assert isinstance(model.language_model, kind) and model.defaults.prefix_lm is splits
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    batch = {**samples(), "uniform": torch.full((2,), 0.3, dtype=torch.float64)}
    losses = []
    for _ in range(8):
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 5e-4, losses


@pytest.mark.parametrize(("options", "words"), [
    (["model.llm_model=''"], "model.llm_model: names no language model"),
    (["model.llm_model=''", "model.llm_args={model_type: qwen2}"], "model.llm_tokenizer: llm_args gives sizes only"),
])
def test_a_section_without_a_language_model_is_an_error(options: list[str], words: str) -> None:
    options = ["model.arch=blip2_llm", "model.model_type=mini_opt", *options]
    errors = check(compose("projects/blip2/stage2_opt.yaml", options))
    assert any(words in error for error in errors), errors


def test_sizes_alone_take_the_tokenizer_of_the_named_packaged_model() -> None:
    section, _ = model_sections("blip2_llm", "mini_opt")
    section = dataclasses.replace(section, load_pretrained=False, llm_args=SIZES["qwen2"])  # type: ignore[call-arg]
    tokenizer = build_model(section).language_model.tokenizer  # type: ignore[union-attr]
    assert tokenizer.decode([tokenizer.targets(["a red ball"])[0][:-1]]) == ["a red ball"]  # type: ignore[union-attr]


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error() -> None:
    section, _ = model_sections("blip2_llm", "mini_opt")
    small = {**SIZES["qwen2"], "vocab_size": 600}
    section = dataclasses.replace(section, load_pretrained=False, llm_args=small)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="has 1068 tokens, and the language model has 600. Name the model's own"):
        build_model(section)
