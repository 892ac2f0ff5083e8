"""Instructions: drawn by the sample's random numbers in training, always the same in evaluation."""

from __future__ import annotations

import random

import pytest

from lavis_lite.errors import ConfigError
from lavis_lite.processors.instruction import Instruction
from lavis_lite.processors.templates import EVALUATION, TEMPLATES


def test_lists_of_the_paper() -> None:
    assert {name: len(texts) for name, texts in TEMPLATES.items()} == {"caption": 13, "vqa": 10, "vqg": 6}
    assert all(text.count("{}") == (name != "caption") for name, texts in TEMPLATES.items() for text in texts)
    assert all(EVALUATION[name] in texts for name, texts in TEMPLATES.items())


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
    ("vqq", "did you mean 'vqg' or 'vqa'"), ([], "the list is empty"), (["{} and {}"], "at most one"), ([3], "not 3"),
    ("Question: {}", r"goes into a list: \['Question: {}'\]"),
])
def test_templates_that_cannot_be(templates: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Instruction(templates)  # type: ignore[arg-type]
