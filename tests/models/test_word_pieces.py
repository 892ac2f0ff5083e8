"""The packaged tokenizer without transformers equals the one that transformers loads, and spares its import."""

from __future__ import annotations

import random
import sys

import pytest
import torch

from lavis_lite import load_model
from lavis_lite.models.text_tokens import TextTokenizer

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
