"""The packaged tokenizer without transformers equals the one that transformers loads, and spares its import."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite import load_model
from lavis_lite.checkpoints.weights import packaged
from lavis_lite.errors import ConfigError
from lavis_lite.models.language.families import GENERAL
from lavis_lite.models.language.tokens import LanguageTokenizer
from lavis_lite.models.text_tokens import MINI_FOLDER, TextTokenizer

PIECES = ("a red dog", "Café", "naïve ", "日本", "[SEP]", "[DEC]", "##s", "\u200b", "\x00", "🙂", "don't", "x" * 101,
          "\n", "½", "[ PAD ]", "\ud800", "two small blue triangles", "!", "ＡＢＣ", "ß", "")


@pytest.fixture(scope="module")
def both() -> tuple[TextTokenizer, TextTokenizer]:
    """Without transformers, and with it."""
    light, heavy = TextTokenizer("mini", 12), TextTokenizer("mini", 12)
    assert heavy.loaded is not None
    return light, heavy


def test_ids_lengths_and_special_ids_are_equal(both: tuple[TextTokenizer, TextTokenizer]) -> None:
    light, heavy = both
    rng = random.Random(0)
    texts = [" ".join(rng.choices(PIECES, k=rng.randrange(6))) for _ in range(300)]
    assert light(texts).ids.tolist() == heavy(texts).ids.tolist()
    assert light.lengths(texts) == heavy.lengths(texts) and light.plain(texts) == heavy.plain(texts)
    assert light.special_ids == heavy.special_ids and light.cut == heavy.cut
    assert light.plain.control_tokens == heavy.plain.control_tokens
    assert light._loaded is None


def test_ids_are_written_out_alike(both: tuple[TextTokenizer, TextTokenizer]) -> None:
    light, heavy = both
    rng = random.Random(1)
    rows = [rng.choices(range(light.special_ids.vocab_size), k=rng.randrange(12)) for _ in range(300)]
    assert light.decode(rows) == heavy.decode(rows)


def test_words_that_a_caller_adds_are_read() -> None:
    tokenizer = TextTokenizer("mini")
    before = tokenizer.plain(["zyx dog"])
    number = tokenizer.loaded.add_tokens(["zyx"]) and tokenizer.loaded.convert_tokens_to_ids("zyx")
    assert tokenizer.plain(["zyx dog"]) == [[number, *tokenizer.plain(["dog"])[0]]] != before


def test_stage_1_reads_and_writes_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it would fail
    model = load_model("blip2", "mini")
    images = torch.zeros(2, 3, 64, 64)
    assert len(model.generate({"image": images}, max_length=3)) == 2
    assert model({"image": images, "text_input": ["a dog", "b"], "image_id": [1, 2]}).loss.isfinite()
    assert model.tokenizer._loaded is None


# a folder that lacks files ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("load", [lambda folder: TextTokenizer(folder).loaded,
                                  lambda folder: LanguageTokenizer(folder, GENERAL).loaded])
def test_a_tokenizer_without_its_vocabulary_is_refused(load: Callable[[str], Any], tmp_path: Path) -> None:
    """transformers makes one that knows special tokens alone: every word is unknown to it."""
    shutil.copy(MINI_FOLDER / "tokenizer_config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"has no vocabulary \(vocab\.txt\)"):
        load(str(tmp_path))
    shutil.copy(MINI_FOLDER / "tokenizer.json", tmp_path)
    assert load(str(tmp_path))("a red cube")["input_ids"][1:-1] == TextTokenizer("mini").plain(["a red cube"])[0]


def test_a_tokenizer_under_a_guessed_class_is_refused_if_it_splits_otherwise(tmp_path: Path) -> None:
    """Without tokenizer_config.json the type of the model decides, here for the pieces of GPT-2."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(packaged("mini/opt") / name, tmp_path)
    with pytest.raises(ConfigError, match=r"has no tokenizer_config\.json.*a GPT2Tokenizer.*in another way"):
        LanguageTokenizer(str(tmp_path), GENERAL).loaded  # noqa: B018  # it loads
