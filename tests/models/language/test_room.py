"""Positions of language models: who has how many, and training texts that are cut to them and counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lavis_lite.errors import ConfigError, TextTooLongError
from lavis_lite.models.language import GenerationConfig, Limits
from lavis_lite.models.language.tokens import Room, positions_of
from tests.models.language.tiny import soft_prompts, tiny


@pytest.mark.parametrize(("sizes", "positions"), [
    ({"model_type": "opt"}, 2048), ({"model_type": "gpt2", "n_positions": 77}, 77), ({"model_type": "bart"}, 1024),
    ({"model_type": "llama", "max_position_embeddings": 99}, 99), ({"model_type": "qwen2"}, 32768),
    ({"model_type": "t5", "n_positions": 512}, None), ({"model_type": "umt5"}, None), ({"model_type": "bloom"}, None),
    ({"model_type": "mamba"}, None), ({"model_type": "gemma3"}, 131072)])
def test_positions_by_configuration(sizes: dict[str, Any], positions: int | None) -> None:
    rest = dict(sizes)
    assert positions_of(AutoConfig.for_model(rest.pop("model_type"), **rest)) == positions


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "qwen2", "phi", "gemma2", "bart"])
def test_the_last_row_that_fits_is_answered_and_scored(name: str) -> None:
    model = tiny(name)
    soft = soft_prompts(model, 1).detach()
    framing = len(model.tokenizer.prompts([""])[0])
    options = GenerationConfig(max_new_tokens=6, min_new_tokens=6, num_beams=2)
    most = 256 - 4 - framing - (6 if model.room.joint else 0)
    assert len(model.generate(soft, ["b" * most], options)) == 1
    with pytest.raises(TextTooLongError, match=f"row 0 has {most + framing + 1} tokens, and there is room for"):
        model.generate(soft, ["b" * (most + 1)], options)
    candidate = model.tokenizer.targets(model.candidate_texts("b", ["yes"]), end=model.family.candidate_end)[0]
    most = 256 - 4 - framing - (len(candidate) if model.room.joint else 0)
    assert bool(model.score(soft, ["b" * most], ["yes", "n"]).isfinite().all())
    with pytest.raises(TextTooLongError):
        model.score(soft, ["b" * (most + 1)], ["yes", "n"])
    with pytest.raises((ConfigError, TextTooLongError)):
        model.score(soft, ["b"], ["y" * 300])


def test_every_row_that_is_too_long_is_named_once() -> None:
    model = tiny("opt")
    soft = soft_prompts(model, 3).detach()
    with pytest.raises(TextTooLongError, match="2 of 3 prompts are too long") as caught:
        model.generate(soft, ["b" * 300, "b", "b" * 280], GenerationConfig(max_new_tokens=2))
    assert caught.value.rows == {0: 301, 2: 281}


def test_t5_takes_any_length() -> None:
    model = tiny("t5")
    assert len(model.generate(soft_prompts(model, 1).detach(), ["b" * 700], GenerationConfig(max_new_tokens=2))) == 1


@pytest.mark.parametrize(("vectors", "prompt", "target", "expected"), [
    (32, 128, 256, (128, 2016)), (32, 128, 4000, (128, 2016)), (32, 1900, 256, (1760, 2016)),
    (32, 4000, 4000, (1008, 2016)), (2046, 9, 9, (1, 2))])
def test_limits_of_training_within_2048_positions(vectors: int, prompt: int, target: int,
                                                  expected: tuple[int, int]) -> None:
    assert Room(2048, joint=True).fit_training(vectors, prompt, target) == expected
    assert Room(None, joint=True).fit_training(vectors, prompt, target) == (prompt, prompt + target)
    assert Room(None, joint=False).fit_training(vectors, prompt, target) == (prompt, target)
    with pytest.raises(ConfigError, match="leave no room for text in 2048 positions"):
        Room(2048, joint=True).fit_training(2047, prompt, target)


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "bart", "t5"])
def test_training_never_goes_beyond_the_positions(name: str) -> None:
    """Limits above the positions, as a section may have them: texts are cut, ends are kept, and all is counted."""
    model = tiny(name, limits=Limits(1000, 1000))
    texts, targets = ["b" * 900, "a", "c" * 200], ["x" * 900, "y", "z" * 20]
    loss = model.loss(soft_prompts(model, 3), texts, targets)
    assert bool(torch.isfinite(loss))
    before, after = model.training_rows(texts, targets, 4)
    words = model.tokenizer
    for first, second in zip(before, after, strict=True):
        assert name == "t5" or 4 + (len(first) + len(second) if model.room.joint else max(len(first), 0)) <= 256
        assert second[-1] == words.end
    prompts = {"t5": 0, "bart": 2}.get(name, 4)  # a prompt has half the room where both share it: two of them are cut
    assert (words.cut_prompts.cut, words.cut_targets.cut) == (prompts, 0 if name == "t5" else 2)
    assert words.cut_prompts.read == words.cut_targets.read == 6
    assert words.cut_targets.longest == 901 + (name in ("opt", "gpt2", "llama"))  # a space stands before an answer


def test_what_is_within_the_limits_is_not_cut_or_counted() -> None:
    model = tiny("opt", limits=Limits(6, 5))
    model.training_rows(["bbbbb", "bbbbbb"], ["xxx", "xxxx"])
    assert (model.tokenizer.cut_prompts.cut, model.tokenizer.cut_targets.cut) == (1, 1)
    model.tokenizer.prompts(["b" * 50])
    assert model.tokenizer.cut_prompts.read == 2, "answering cuts nothing and counts nothing"


