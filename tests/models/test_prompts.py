"""From a sample's fields to the text a language model reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.prompts import (
    as_list,
    candidate_prompts,
    generation_prompts,
    lettered,
    question_prompts,
    split_caption,
    strip_prompt,
)


def test_one_prompt_for_all_or_one_for_each() -> None:
    assert as_list("a", 2, "prompt") == ["a", "a"] and as_list(("a", "b"), 2, "prompt") == ["a", "b"]
    with pytest.raises(ConfigError, match="prompt: 3 texts for 2 images"):
        as_list(["a"] * 3, 2, "prompt")


def test_prompts_of_generate() -> None:
    assert generation_prompts({}, "a photo of", 2) == ["a photo of"] * 2
    assert generation_prompts({"prompt": ["x", "y"]}, "", 2) == ["x", "y"]
    ocr = {"prompt": "OCR: {}. What?", "ocr_tokens": [["a", "{}"], [str(number) for number in range(40)]]}
    first, second = generation_prompts(ocr, "", 2)
    assert first == "OCR: a, {}. What?" and second.endswith("28, 29. What?")


def test_prompts_of_questions() -> None:
    samples: dict[str, Any] = {"text_input": ["why {x}?", "who?"]}
    assert question_prompts(samples, "", 2) == ["why {x}?", "who?"]
    assert question_prompts(samples, "Question: {} Answer:", 2)[0] == "Question: why {x}? Answer:"
    choices = question_prompts({**samples, "choices": [["a", "b"], ["c"]]}, "{} Options: {}.", 2)
    assert choices == ["why {x}? Options: (a) a (b) b.", "who? Options: (a) c."]
    ocr = question_prompts({**samples, "ocr_tokens": [["a", "b"], []]}, "OCR: {}. {}", 2)
    assert ocr == ["OCR: a, b. why {x}?", "OCR: . who?"]


@pytest.mark.parametrize(("prompt", "places"), [("no place", 0), ("{} {}", 2), ("{} {} {}", 3)])
def test_a_template_that_cannot_be_filled(prompt: str, places: int) -> None:
    with pytest.raises(ConfigError, match=f"has {places} places"):
        question_prompts({"text_input": ["why?"]}, prompt, 1)


def test_prompts_of_candidates() -> None:
    samples = {"prompt": "Question: {} Answer:", "text_input": ["why?", "who?"], "context": ["c", ""],
               "history": ["h1", "h2"], "caption": ["k1", "k2"]}
    assert candidate_prompts(samples, "", 2) == [
        'This image has the caption "k1". dialog history: h1\ncontext: c. Question: why? Answer:',
        'This image has the caption "k2". dialog history: h2\nQuestion: who? Answer:']
    pairs = {"prompt": "{} or {}?", "text_input": [["a", "b"]]}
    assert candidate_prompts(pairs, "", 1) == ["a or b?"]
    with pytest.raises(ConfigError, match="has 2 places {} for 1 texts"):
        candidate_prompts({"prompt": "{} or {}?", "text_input": ["a"]}, "", 1)


def test_many_choices_have_names() -> None:
    assert lettered(["x"] * 27).split(" ")[-2:] == ["(27)", "x"]


def test_a_caption_is_split_before_any_word_alike() -> None:
    halves = Counter(split_caption("a red dog", step / 300) for step in range(300))
    assert halves == {("", "a red dog"): 100, ("a", "red dog"): 100, ("a red", "dog"): 100}
    assert split_caption("dog", 0.99) == ("", "dog") and split_caption("", 0.5) == ("", "")


def test_a_caption_may_carry_the_prompt() -> None:
    assert strip_prompt("a photo of a dog", "a photo of") == strip_prompt("a dog", "a photo of") == "a dog"
    assert strip_prompt(" a dog", "") == " a dog"
