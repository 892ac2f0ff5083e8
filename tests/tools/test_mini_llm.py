"""The mini language models: their tokenizers, their training script, and what ships."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_lite.models.language.families import FAMILIES
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.torchvision_shim import ensure_torchvision
from tools import build_llm_tokenizer, train_llm
from tools.documents import Document
from tools.llm_learners import END_WEIGHT, LEARNERS, START_WEIGHT, Learner
from tools.llm_scores import evaluate
from tools.muon import Muon, orthogonal
from tools.phases import PHASES

ASSETS = Path(__file__).resolve().parents[2] / "lavis_lite" / "assets" / "mini"
FAMILY_NAMES = ("opt", "t5")
LEAST = {"opt": (0.88, 0.9), "t5": (0.88, 0.9)}
"""of all answers in every context, and of captions from one vector for each object, about 60 scenes"""


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> LanguageTokenizer:
    return LanguageTokenizer(os.fspath(ASSETS / family), FAMILIES[family], family == "t5")


def auto_model(family: str) -> Any:
    ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForCausalLM if family == "opt" else AutoModelForSeq2SeqLM
    return kind.from_pretrained(ASSETS / family, dtype=torch.float32)


@pytest.fixture(scope="module")
def shipped(family: str) -> Learner:
    return LEARNERS[family](os.fspath(ASSETS / family), auto_model(family))


# tokenizers ---------------------------------------------------------------------------------------------------------
def test_special_tokens_have_the_ids_of_the_family(family: str, tokenizer: LanguageTokenizer) -> None:
    found = tokenizer.loaded
    assert (found.pad_token_id, found.eos_token_id, found.unk_token_id) == ((1, 2, 3) if family == "opt" else (0, 1, 2))
    if family == "opt":
        assert found.bos_token_id == 2


def test_prompts_are_closed_as_the_family_does(family: str, tokenizer: LanguageTokenizer) -> None:
    (row,) = tokenizer.prompts(["a photo of"])
    plain = tokenizer.targets(["a photo of"], end=False)[0]
    assert row == ([2, *plain] if family == "opt" else [*plain, 1])
    assert len(plain) == 3


def test_answers_end_with_a_line_break_or_eos(family: str, tokenizer: LanguageTokenizer) -> None:
    row = tokenizer.targets(["red"])[0]
    assert tokenizer.loaded.convert_ids_to_tokens(row) == ["red", "\n" if family == "opt" else "</s>"]


@pytest.mark.parametrize("text", ["red circle", "large red star top, small blue cross left", "is there a red star?",
                                  "yes", "xylophone 12"])
def test_texts_come_back_without_stray_spaces(tokenizer: LanguageTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.targets([text])) == [text]


def test_case_and_blanks_do_not_matter_and_every_ascii_word_has_ids(tokenizer: LanguageTokenizer) -> None:
    assert tokenizer.targets(["  A Red\tCIRCLE "]) == tokenizer.targets(["a red circle"])
    assert tokenizer.loaded.unk_token_id not in tokenizer.targets(["zwölf qwerty_9 #!"])[0]


def test_prompt_and_target_apart_are_the_ids_of_the_whole(tokenizer: LanguageTokenizer) -> None:
    apart = [*tokenizer.targets(["a photo of"], end=False)[0],
             *tokenizer.targets([tokenizer.continuation("a photo of", "red circle")], end=False)[0]]
    assert apart == tokenizer.targets(["a photo of red circle"], end=False)[0]


def test_shipped_tokenizer_is_what_the_script_builds(family: str, tmp_path: Path) -> None:
    build_llm_tokenizer.main(["--family", family, "--out", os.fspath(tmp_path)])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (ASSETS / family / name).read_text()


# training -----------------------------------------------------------------------------------------------------------
def test_two_steps_write_a_folder_that_loads(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_llm.main(["--family", family, "--steps", "2", "--test", "2", "--out", os.fspath(tmp_path)])
    assert "step 2/2" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "CARD.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]
    card = (tmp_path / "CARD.md").read_text()
    assert f"--family {family} --steps 2" in card and "| one vector each |" in card


def test_batches_are_the_same_again_and_go_from_one_object_to_four_and_from_names_to_yes_and_no() -> None:
    first = list(train_llm.batches(3, 40, PHASES))
    assert first == list(train_llm.batches(3, 40, PHASES))
    assert {document.objects for document in first[0]} == {1}
    assert {document.objects for batch in first for document in batch} == {1, 2, 3, 4}
    answers = [{answer for document in batch for _, answer in document.turns} for batch in first]
    assert not any("yes" in found for found in answers[:5]) and all("yes" in found for found in answers[20:])


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [train_llm.rate_at(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / train_llm.WARMUP_STEPS)
    assert rates[train_llm.WARMUP_STEPS:500] == [1.0] * (500 - train_llm.WARMUP_STEPS)
    assert rates[750] == pytest.approx(0.5) and rates[-1] == 0.0


def test_a_turn_is_learned_as_if_it_stood_alone(shipped: Learner) -> None:
    documents = [one for one in next(train_llm.batches(3, 1, PHASES)) if not one.chained][:4]
    shipped.model.double()
    with torch.no_grad():
        together = shipped.predict(documents, noise=False)
        number = 0
        for document in documents:
            for turn in document.turns:
                alone = shipped.predict([replace(document, turns=(turn,))], noise=False)
                mine = together.turns == number
                assert together.ids[mine].tolist() == alone.ids[alone.turns == 0].tolist()
                torch.testing.assert_close(together.logits[mine], alone.logits[alone.turns == 0], rtol=0, atol=1e-9)
                number += 1
    shipped.model.float()


def test_a_turn_of_a_conversation_depends_on_the_turns_before_it(family: str, shipped: Learner) -> None:
    if family == "t5":
        pytest.skip("an encoder-decoder reads each turn alone")
    document = Document("red star left.", (("what color is the star?", "red"), ("where is it?", "left")), 1)
    with torch.no_grad():
        apart, joined = (shipped.predict([replace(document, chained=value)], noise=False) for value in (False, True))
    assert torch.equal(apart.ids, joined.ids)
    first, second = apart.turns == 0, apart.turns == 1
    torch.testing.assert_close(apart.logits[first], joined.logits[first])
    assert (apart.logits[second] - joined.logits[second]).abs().max() > 1e-3


def test_only_what_is_answered_is_learned(family: str, shipped: Learner) -> None:
    document = Document((("red", "star"), ()), (("a photo of", "red star"), ("what color?", "red")), 1)
    found = shipped.predict([document], noise=False)
    red, star = shipped.rows(["red star"])[0]
    end, begin = shipped.tokenizer.end, shipped.tokenizer.loaded.bos_token_id
    learned = sorted(zip(found.turns.tolist(), found.ids.tolist(), [round(one, 3) for one in found.weights.tolist()],
                         strict=True))
    answers = sorted([(0, red, 1.0), (0, star, 1.0), (0, end, END_WEIGHT), (1, red, 1.0), (1, end, END_WEIGHT)])
    assert learned == [*([(-1, begin, START_WEIGHT)] if family == "opt" else []), *answers]


def test_blended_vectors_are_those_of_their_words_in_any_order(shipped: Learner) -> None:
    first, second, third, empty = shipped.blended([("red", "star"), ("star", "red"), ("star",), ()])
    embed = shipped.embed(torch.tensor(shipped.rows(["red star"])[0]))
    assert torch.allclose(first, second) and torch.allclose(first, embed.sum(0) / 2 ** 0.5, atol=1e-6)
    assert torch.equal(third, embed[1]) and not empty.any()


def test_vectors_stand_before_the_words_of_their_row(shipped: Learner) -> None:
    ids = torch.tensor([shipped.rows(["red star left"])[0]] * 2)
    read = shipped.read(ids, [(("blue",), ("heart",)), ()], noise=False)
    blue_heart = shipped.embed(torch.tensor(shipped.rows(["blue heart"])[0]))
    assert torch.equal(read[0, :2], blue_heart) and torch.equal(read[0, 2], read[1, 2])
    assert torch.equal(read[1], shipped.embed(ids[1]))


# Muon ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_updates_are_nearly_orthogonal_and_keep_their_directions(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonal(matrices) @ right.mT
    ratio = values / values.sum(-1, keepdim=True)
    assert (found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    assert found.diagonal(dim1=1, dim2=2)[ratio > 0.02].min() > 0.6 and found.diagonal(dim1=1, dim2=2).max() < 1.3


def test_a_step_is_as_long_as_one_of_adamw() -> None:
    weight = nn.Parameter(torch.zeros(64, 32))
    weight.grad = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    Muon([weight], lr=0.1).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.25)  # 0.7 to 1.2


# what ships ---------------------------------------------------------------------------------------------------------
def test_shipped_files_and_their_size(family: str) -> None:
    size = sum(path.stat().st_size for path in (ASSETS / family).iterdir())
    assert size < 5e6


@pytest.mark.slow
def test_what_ships_answers_from_words_and_from_vectors(family: str, shipped: Learner) -> None:
    scores = evaluate(shipped, 60)
    least = LEAST[family]
    assert {name: found["all"] for name, found in scores.items() if found["all"] < least[0]} == {}
    assert scores["one vector each"]["caption"] >= least[1]
    assert evaluate(shipped, 6) == evaluate(shipped, 6)
