"""Conversations with a model: history, pictures at any turn, pieces, and an answer that is not read to its end."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.language.rows import insert_pictures
from lavis_lite.processors.chat_templates import apply_template
from lavis_lite.zoo import load_model

OWN = {"user": "question: {} ", "assistant": "answer: {}</s>"}
OPTIONS = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> Blip2LLM:
    loaded = load_model("blip2_opt", "mini", is_eval=True, device="cpu")
    assert isinstance(loaded, Blip2LLM)
    return loaded


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 64, 64, generator=generator) for _ in range(count)]


def test_turns_and_pictures_are_remembered(model):
    first, second = images(2)
    chat = model.chat(OWN, OPTIONS)
    answers = [chat.ask("what is it?", [first]), chat.ask("and this?", [second]), chat.ask("which is red?")]
    turns: list[Turn] = []
    shown = [[Picture(0)], [Picture(1)], []]
    vectors = [model.embed_image(image[None], [""])[0] for image in (first, second)]
    for asked, pictures, answer in zip(("what is it?", "and this?", "which is red?"), shown, answers, strict=True):
        turns.append(Turn("user", (*pictures, asked)))
        count = sum(isinstance(part, Picture) for turn in turns for part in turn.parts)
        pieces = apply_template(Conversation(tuple(turns), count), OWN, answering=True)
        sequence = insert_pictures(pieces, vectors[:count])
        assert model.language_model.generate([sequence], OPTIONS) == [answer]
        turns.append(Turn("assistant", (answer or " ",)))
    assert chat.turns == turns
    chat.reset()
    assert chat.ask("what is it?", [first]) == answers[0]


def test_an_answer_that_is_not_read_to_its_end_is_forgotten(model):
    chat = model.chat(OWN, OPTIONS, system="Be brief.")
    stream = chat.stream("what is it?", images(1))
    next(stream)
    stream.close()
    assert chat.turns == [Turn("system", ("Be brief.",))] and chat.vectors == []
    assert "".join(chat.stream("what is it?", images(1))) == model.chat(OWN, OPTIONS, "Be brief.").ask(
        "what is it?", images(1))


def test_an_answer_that_the_conversation_has_left_behind_is_forgotten(model):
    chat = model.chat(OWN, OPTIONS)
    late = chat.stream("what is it?", images(1))
    next(late)
    chat.ask("and this?")
    after = list(chat.turns)
    assert "".join(late) and chat.turns == after and chat.vectors == []
    late = chat.stream("what is it?", images(1))
    next(late)
    chat.reset()
    assert "".join(late) and chat.turns == []


@pytest.mark.parametrize(("text", "given", "told"), [
    (5, [], "a turn is a text, not int"),
    ("hi", torch.zeros(3, 64, 64), r"not float\[3, 64, 64\]"),
    ("hi", [torch.zeros(1, 3, 64, 64)], "images must be a list of tensors"),
    ("hi", ["scene.jpg"], r"images must be a list of tensors float\[3,H,W\], as vis_processors.*not str")])
def test_a_turn_is_a_text_with_processed_pictures(model, text, given, told):
    chat = model.chat(OWN, OPTIONS)
    with pytest.raises(ConfigError, match=told):
        chat.ask(text, given)
    assert chat.turns == []


def test_answers_end_at_the_templates_separator(model):
    assert model.chat("minigpt4").options.stop == ("###",) and model.chat("vicuna_v1").options.stop == ()
