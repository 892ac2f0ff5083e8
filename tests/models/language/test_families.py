"""The rows of facts, one test each, and what a tokenizer is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lavis_lite.errors import ConfigError
from lavis_lite.models.language import Limits, build_language_model
from lavis_lite.models.language.build import load_pretrained
from lavis_lite.models.language.families import FAMILIES, GENERAL, family_of
from lavis_lite.models.language.tokens import LanguageTokenizer, pad_rows
from tests.models.language.tiny import BOS, EOS, IDS, PAD, SIZES, byte_tokenizer, soft_prompts, tiny

CPU = torch.device("cpu")


def text_of(name: str, family: str, **kind: bool) -> LanguageTokenizer:
    return LanguageTokenizer(byte_tokenizer(**kind), FAMILIES.get(family, GENERAL), name in ("t5", "bart"))


def test_a_model_without_a_row_takes_the_general_one() -> None:
    assert family_of("qwen2") is GENERAL and family_of("opt") is FAMILIES["opt"]
    assert family_of("llama", "vicuna") is FAMILIES["vicuna"]
    with pytest.raises(ConfigError, match="did you mean 'vicuna'"):
        family_of("llama", "vicunia")


def test_opt_ends_with_a_line_and_others_with_eos() -> None:
    newline = byte_tokenizer()("\n", add_special_tokens=False)["input_ids"]
    assert [text_of("opt", "opt").end] == newline
    assert text_of("llama", "llama").end == text_of("gpt2", "gpt2").end == EOS


def test_opt_learns_its_begin_token_where_nothing_is_read() -> None:
    for name, learned in (("opt", True), ("gpt2", False)):
        model = tiny(name)
        before, after = model.training_rows(["", "a"], ["x", "x"])
        assert (before[0] == [] and after[0][0] == BOS) is learned
        assert before[1][0] == BOS and after[1][0] != BOS


def test_padding_sides() -> None:
    model = tiny("opt")
    soft = soft_prompts(model, 2)
    rows = model.tokenizer.prompts(["abc", "a"])
    embeds, mask = model.prefix_embeds(soft, rows)  # type: ignore[operator]
    assert mask.tolist() == [[True] * 8, [False] * 2 + [True] * 6]
    torch.testing.assert_close(embeds[1, 2:6], soft[1])


def test_precision_of_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny("opt").dtype == torch.float32, "without a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tiny("opt").dtype == torch.float16 and tiny("t5").dtype == torch.bfloat16
    assert tiny("opt", precision="fp32").dtype == torch.float32
    with pytest.raises(ConfigError, match="llm_precision"):
        tiny("opt", precision="fp8")


def test_the_end_counts_in_candidates_except_for_vicuna() -> None:
    scores = {}
    for family in ("llama", "vicuna"):
        model = tiny("llama", family=family)
        soft, prompts = soft_prompts(model, 1).detach(), [[BOS, 5]]
        rows = model.tokenizer.targets(["yes"]), model.tokenizer.targets(["yes"], end=False)
        prefix = model.read(soft, prompts)
        scores[family] = [float(model.candidate_scores(prefix, [0], row, "sum")) for row in rows]
        model.tokenizer.prompts = lambda texts: [[BOS, 5]]  # type: ignore[method-assign]
        found = float(model.score(soft, ["q "], ["yes"]))
        assert found == pytest.approx(scores[family][family == "vicuna"]) != scores[family][family != "vicuna"]


def test_vicuna_keeps_the_tokens_of_the_released_weights() -> None:
    model = tiny("llama", family="vicuna")
    tokenizer = model.tokenizer
    assert tokenizer.prompts(["a"])[0][0] == EOS, "prompts start with </s>"
    assert tiny("llama").tokenizer.prompts(["a"])[0][0] == BOS
    assert model.embed(torch.tensor([model.pad])).shape == (1, 16), "[PAD] has a row of its own"
    assert model.pad == IDS["vocab_size"] == model.model.config.vocab_size - 1
    letter = tokenizer.targets(["a"], end=False)[0]
    assert tokenizer.decode([[0, *letter]]) == ["a"] != tiny("llama").tokenizer.decode([[0, *letter]])


def test_flan_t5_has_the_exact_gelu_and_an_output_matrix_of_its_own() -> None:
    for name, own in (("flan_t5", True), ("t5", False)):
        model = tiny(name).model
        assert (model.lm_head.weight is not model.shared.weight) is own
        exact = [module for module in model.modules() if isinstance(module, nn.GELU)]
        assert bool(exact) is own


@pytest.mark.parametrize("name", ["flan_t5", "opt"])
def test_weights_of_a_folder_arrive_as_they_are(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = tiny(name)
    saved.model.save_pretrained(tmp_path)
    capfd.readouterr()
    saved.tokenizer.loaded.save_pretrained(tmp_path)
    model = build_language_model(str(tmp_path), limits=Limits(20, 20))
    assert {value.device.type for value in model.parameters()} == {"meta"}
    load_pretrained(model, str(tmp_path))
    assert "Loading weights" not in capfd.readouterr().err  # a bar is for terminals
    expected, found = saved.model.state_dict(), model.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not any(value.requires_grad for value in model.parameters())
    model.train()
    assert not any(module.training for module in model.model.modules())
    soft = soft_prompts(saved)
    torch.testing.assert_close(model.loss(soft, ["a"] * 3, ["b"] * 3), saved.loss(soft, ["a"] * 3, ["b"] * 3))


@pytest.mark.parametrize(("name", "sizes", "words"), [
    ("/nowhere", None, "llm_model: '/nowhere' is no language model"), ("", {"model_type": "opy"}, "llm_args"),
    ("", {"model_type": "clip_vision_model"}, "writes no text")])
def test_what_is_no_language_model(name: str, sizes: dict[str, str] | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_language_model(name, sizes=sizes)


# tokens ---------------------------------------------------------------------------------------------------------------
def test_a_long_prompt_loses_its_beginning_and_keeps_its_special_tokens() -> None:
    decoder, encoder = text_of("gpt2", "gpt2"), text_of("t5", "t5", before=False, after=True)
    letters = decoder.targets(["abcdef"], end=False)[0]
    assert decoder.prompts(["abcdef"], 4) == [[BOS, *letters[3:]]]
    assert decoder.prompts(["abcdef"], 4, "right") == [[BOS, *letters[:3]]]
    assert encoder.prompts(["abcdef"], 4) == [[*letters[3:], EOS]]
    assert encoder.prompts(["abcdef"]) == [[*letters, EOS]]


def test_a_cut_target_keeps_its_end() -> None:
    tokenizer = text_of("gpt2", "gpt2")
    letters = tokenizer.targets(["abcdef"], end=False)[0]
    assert tokenizer.targets(["abcdef", "ab"], [3, 9]) == [[*letters[:2], EOS], [*letters[:2], EOS]]


def test_prompt_and_target_share_a_limit() -> None:
    model = tiny("opt", limits=Limits(20, 20, together=8))
    before, after = model.training_rows(["abc"], ["a long caption"])
    assert len(before[0]) + len(after[0]) == 8 and after[0][-1] == model.tokenizer.end


def test_a_target_stands_apart_from_its_prompt_by_one_space() -> None:
    tokenizer = text_of("gpt2", "gpt2")
    assert tokenizer.continuation("Answer:", "red") == tokenizer.continuation("Answer:", " red ") == " red"
    assert tokenizer.continuation("", "red") == tokenizer.continuation("Answer: ", "red") == "red"


def test_rows_are_padded_on_either_side() -> None:
    assert pad_rows([[5, 6], [7]], PAD, "left", CPU)[0].tolist() == [[5, 6], [PAD, 7]]
    ids, mask = pad_rows([[5, 6], [7]], PAD, "right", CPU)
    assert ids.tolist() == [[5, 6], [7, PAD]] and mask.tolist() == [[True, True], [True, False]]
    assert pad_rows([[], []], PAD, "right", CPU)[0].shape == (2, 0)


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos token"):
        _ = LanguageTokenizer(tokenizer, GENERAL).end


def test_limits_below_one() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Limits(0, 5)


def test_every_size_of_the_tests_builds() -> None:
    for name in SIZES:
        assert tiny(name).hidden_size == (12 if name == "opt" else 16)
