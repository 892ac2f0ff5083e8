"""The shipped tokenizer: loads offline, covers the world and everyday text, and is what its builder builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

import lavis_lite
from lavis_lite.mini_world.captions import MAX_TOKENS, make_captions
from lavis_lite.mini_world.questions import make_questions
from lavis_lite.mini_world.scenes import make_scene
from tools.build_tokenizer import build, vocabulary

FOLDER = Path(lavis_lite.__file__).parent / "assets" / "mini" / "tokenizer"


@pytest.fixture(scope="module", params=[AutoTokenizer, BertTokenizer])
def tokenizer(request: pytest.FixtureRequest):
    """The shipped tokenizer, loaded by both names."""
    return request.param.from_pretrained(str(FOLDER), local_files_only=True)


def test_world_text_is_whole_words_and_fits_32_tokens(tokenizer) -> None:
    for index in range(3000, 3300):  # beyond the scenes that the builder surveyed
        scene = make_scene(7, "test", index)
        for caption in make_captions(scene):
            words = caption.replace(",", " ,").split()
            assert tokenizer.tokenize(caption) == words
            assert len(tokenizer(caption).input_ids) <= MAX_TOKENS + 2
        for question in make_questions(scene):
            assert not [piece for piece in tokenizer.tokenize(f"{question.text} {question.answer}") if "##" in piece]


@pytest.mark.parametrize(
    "text",
    [
        "A man riding a horse on the beach at sunset.",
        "two zebras & a giraffe: what's behind the 17 trees? (none!)",
        "quixotic jabberwocky vexed by phlogiston",
        "Café déjà-vu, naïve façade",
        "a photo of",
        "Question: how many? Short answer:",
    ],
)
def test_everyday_text_has_no_unknown(tokenizer, text: str) -> None:
    pieces = tokenizer.tokenize(text)
    assert pieces and tokenizer.unk_token not in pieces


def test_everyday_words_stay_whole(tokenizer) -> None:
    assert tokenizer.tokenize("a man riding a horse on the beach") == "a man riding a horse on the beach".split()


def test_what_the_alphabet_lacks_is_unknown(tokenizer) -> None:
    assert tokenizer.tokenize("☃") == [tokenizer.unk_token]


def test_special_tokens_are_berts_and_dec_is_left_to_the_model(tokenizer) -> None:
    assert (tokenizer.pad_token_id, tokenizer.cls_token, tokenizer.sep_token) == (0, "[CLS]", "[SEP]")
    ids = tokenizer("red star").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert "[DEC]" not in tokenizer.get_vocab()
    size = len(tokenizer)
    assert tokenizer.add_special_tokens({"bos_token": "[DEC]"}) == 1
    assert tokenizer.bos_token_id == size


def test_the_shipped_files_are_what_the_builder_builds(tmp_path: Path) -> None:
    build(tmp_path)
    assert (FOLDER / "vocab.txt").read_text().split("\n")[:-1] == vocabulary()
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
