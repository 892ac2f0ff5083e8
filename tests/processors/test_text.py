"""Caption and question clean-up."""

from __future__ import annotations

import pytest

from lavis_lite.processors.text import BlipCaption, BlipQuestion


@pytest.mark.parametrize(("raw", "clean"), [
    ("A Cat.", "a cat"),
    ('Two "dogs" (running);  ~fast!', "two dogs running fast"),
    ("a: b * c # d", "a b c d"),
    ("ends with a line end\n", "ends with a line end"),
    ("tab\tand\u2028separator", "tab and separator"),
    ("what's that-there, eh?", "what's that-there, eh?"),
    ("...", ""),
])
def test_captions(raw, clean):
    assert BlipCaption()(raw) == clean


def test_caption_prompt_is_kept_as_it_is_and_not_counted():
    assert BlipCaption(prompt="A photo of ", max_words=2)("One two three") == "A photo of one two"
    assert len(BlipCaption()("w " * 80).split()) == 50


@pytest.mark.parametrize(("raw", "clean"), [
    ("What is this? ", "what is this?"), ("Is it (really) 3:4?", "is it really 34?"), ("a b c.", "a b c"),
])
def test_questions(raw, clean):
    assert BlipQuestion()(raw) == clean


def test_question_words():
    assert BlipQuestion(max_words=2)("a b c") == "a b"
