"""The mini language models: their tokenizers, their training script, and what ships."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.models.language.families import FAMILIES
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.torchvision_shim import ensure_torchvision
from tools import build_llm_tokenizer, train_llm
from tools.llm_learners import LEARNERS, Learner

ASSETS = Path(__file__).resolve().parents[2] / "lavis_lite" / "assets" / "mini"
FAMILY_NAMES = ("opt", "t5")
DOCUMENTS = 40


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
    assert f"--family {family} --steps 2" in (tmp_path / "CARD.md").read_text()


def test_batches_are_the_same_again_and_go_from_one_object_to_four() -> None:
    first = list(train_llm.batches(3, 60))
    assert first == list(train_llm.batches(3, 60))
    assert {document.objects for document in first[0][0]} == {1}
    assert {document.objects for documents, _ in first for document in documents} >= {1, 2, 3, 4}
    assert {document.kind for document in first[0][0]} == {"caption"}
    assert {document.kind for documents, _ in first for document in documents} >= {"caption", "questions"}


def test_what_is_read_counts_little_in_the_decoder_only_loss(tmp_path: Path) -> None:
    build_llm_tokenizer.build(tmp_path, "opt")
    learner = LEARNERS["opt"].create(os.fspath(tmp_path))
    document = train_llm.make_document("caption", 3, 0)
    found = learner.predict([document], [0.0], noise=False)
    target = learner.tokenizer.targets([document.turns[0][1]])[0]
    assert found.ids[0, -len(target):].tolist() == target
    assert (found.weights == 1).sum() == len(target)
    assert (found.weights[0, -len(target):] == 1).all()


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_blended_vectors_are_those_of_their_words_in_any_order(name: str, shipped: Learner) -> None:
    if shipped.family != name:
        pytest.skip("the other family")
    documents = [train_llm.Document("caption", 1, (("red", "star"), ("star", "red"), ("star",), ()), "", (("", "x"),))]
    first, second, third, empty = shipped.blended(documents, noise=False)[0]
    embed = shipped.embed(torch.tensor(shipped.rows(["red star"])[0]))
    assert torch.allclose(first, second) and torch.allclose(first, embed.sum(0) / 2 ** 0.5, atol=1e-6)
    assert torch.equal(third, embed[1]) and not empty.any()


# what ships ---------------------------------------------------------------------------------------------------------
def test_shipped_files_and_their_size(family: str) -> None:
    size = sum(path.stat().st_size for path in (ASSETS / family).iterdir())
    assert size < 6e6
    assert "Held" not in (ASSETS / family / "CARD.md").read_text()


def test_held_out_copies(shipped: Learner) -> None:
    from tools.train_llm import _exact, _of_objects

    with torch.no_grad():
        single = _exact(shipped, _of_objects(77, 1, 0, DOCUMENTS))
        blended = {count: _exact(shipped, _of_objects(77, count, 12, DOCUMENTS)) for count in (1, 2)}
    assert single >= 0.85 and blended[1] >= 0.9 and blended[2] >= 0.6
