"""Instructions: drawn by the sample's random numbers in training, always the same in evaluation."""

from __future__ import annotations

import random

import pytest

from lavis_lite.errors import ConfigError
from lavis_lite.processors.instruction import EVALUATION, TEMPLATES, Instruction


def test_lists_of_the_paper() -> None:
    counts = {name: len(texts) for name, texts in TEMPLATES.items()}
    assert (counts["caption"], counts["vqa"], counts["vqg"]) == (13, 10, 6)
    assert all(10 <= count <= 15 for name, count in counts.items() if name not in ("vqg", "chat"))
    assert all(len(set(texts)) == len(texts) for texts in TEMPLATES.values())
    assert all(text.count("{}") == ("caption" not in name) for name, texts in TEMPLATES.items() for text in texts)
    assert all(EVALUATION[name] in texts for name, texts in TEMPLATES.items() if name in EVALUATION)
    assert all(Instruction(name, draw=False)("x") for name in [*TEMPLATES, *EVALUATION])


def test_what_belongs_to_a_question_is_placed() -> None:
    extras = {"choices": ["red", "blue"], "context": "", "ocr_tokens": [str(at) for at in range(40)], "history": "Q a"}
    choose = Instruction("choice", draw=False)
    assert choose("why?", None, extras) == "Question: why? Options: (a) red (b) blue. Answer:"
    assert choose("why?", None, {**extras, "context": "Hint."}).startswith("Context: Hint. Question: why?")
    assert choose.placeholders == {"choices", "context"} and Instruction("vqa").placeholders == frozenset()
    read = Instruction(["[OCR tokens: {ocr_tokens}. ]{}"])
    assert read("q", None, extras) == f"OCR tokens: {', '.join(map(str, range(30)))}. q" and read("q") == "q"
    assert Instruction("dialog", draw=False)("q", None, extras) == "Dialog history: Q a\n Question: q Short answer:"


def test_what_is_placed_is_no_template() -> None:
    hostile = Instruction(["[{context} ]{}"])
    assert hostile("{context} [{history}] {}", None, {"context": "{} {choices}", "history": "h"}
                   ) == "{} {choices} {context} [{history}] {}"


def test_every_template_is_drawn_and_the_same_for_the_same_numbers() -> None:
    processor = Instruction("vqa")
    drawn = {processor("how many?", random.Random(seed)) for seed in range(200)}
    assert drawn == {text.replace("{}", "how many?") for text in TEMPLATES["vqa"]}
    assert processor("q", random.Random(3)) == processor("q", random.Random(3))


def test_one_template_where_nothing_is_drawn() -> None:
    assert {Instruction("vqa", draw=False)("a {} b?") for _ in range(20)} == {"Question: a {} b? Short answer:"}
    assert Instruction(["Q {}", "other {}"], draw=False)("x") == "Q x"
    assert Instruction("caption", draw=False)("") == "A short image caption:"


@pytest.mark.parametrize(("templates", "words"), [
    ("vqq", "did you mean 'vqg'"), ([], "the list is empty"), (["{} and {}"], "at most one"), ([3], "not 3"),
    ("Question: {}", r"goes into a list: \['Question: {}'\]"),
])
def test_templates_that_cannot_be(templates: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Instruction(templates)  # type: ignore[arg-type]
