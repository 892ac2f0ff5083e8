"""Tokenizers in the formats of released models (LLaMA's slow SentencePiece, OPT's merges, T5's both), by their rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.models.language import build_language_model
from lavis_lite.models.language.contract import LanguageModel
from tests.models.language.tiny import SIZES

pytestmark = pytest.mark.shared


def language_model(parity: Path, name: str, family: str | None = None) -> LanguageModel:
    return build_language_model("", sizes={**SIZES[name], "vocab_size": 2100}, family=family,
                                tokenizer=str(parity / "tokenizers" / name))


@pytest.mark.parametrize(("name", "family"), [("opt", None), ("llama", None), ("llama", "vicuna"), ("t5", None)])
def test_texts_come_back_and_the_rows_facts_hold(parity_dir: Path, name: str, family: str | None) -> None:
    if not (parity_dir / "tokenizers" / name).is_dir():
        pytest.skip(f"no tokenizer {name} beside the recorded cases")
    model = language_model(parity_dir, name, family)
    tokenizer, text = model.tokenizer, "a photo of two dogs"
    plain = tokenizer.targets([text], end=False)[0]
    assert tokenizer.decode([plain]) == [text]
    [closed] = tokenizer.targets([text])
    assert closed == [*plain, tokenizer.end]
    [prompt] = tokenizer.prompts([text])
    loaded = tokenizer.loaded
    first = {"opt": loaded.bos_token_id, "llama": loaded.bos_token_id}.get(name)
    if family == "vicuna":
        assert loaded.convert_ids_to_tokens(prompt[0]) == "</s>"
        assert loaded.pad_token == "[PAD]" and model.pad == len(loaded) - 1
    elif first is not None:
        assert prompt[0] == first and prompt[1:] == plain
    else:
        assert prompt == [*plain, loaded.eos_token_id], "an encoder's prompt is closed"
    end = loaded.decode([tokenizer.end])
    assert end == ("\n" if name == "opt" else "</s>")
    assert max([*closed, *prompt, model.pad]) < len(loaded) + 1


@pytest.mark.parametrize(("name", "space"), [("opt", "\u0120"), ("llama", "\u2581")])
def test_an_answer_after_a_prompt_begins_with_one_space(parity_dir: Path, name: str, space: str) -> None:
    if not (parity_dir / "tokenizers" / name).is_dir():
        pytest.skip(f"no tokenizer {name} beside the recorded cases")
    tokenizer = language_model(parity_dir, name).tokenizer
    [ids] = tokenizer.targets([tokenizer.continuation("Answer:", "red")], end=False)
    tokens = tokenizer.loaded.convert_ids_to_tokens(ids)
    assert tokens[0].startswith(space) and not tokens[0].startswith(2 * space)
    assert "".join(tokens) == f"{space}red"
