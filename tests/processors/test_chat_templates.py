"""Chat templates: byte for byte the published texts, what of them is learned, and what cannot be a template."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from lavis_lite.conversation import Conversation, Picture, Text, Turn
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.processors.chat_templates import TEMPLATES, Piece, apply_template, find_template
from lavis_lite.processors.text import without_marks

TALK = Conversation((Turn("user", (Picture(0), "\nHow many?")), Turn("assistant", ("Two.",), True),
                     Turn("user", ("Sure?",)), Turn("assistant", ("Yes.",), True)), 1)
POLITE = ("A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the {0}'s questions.")
OWL = ("The following is a conversation between a curious human and AI assistant. The assistant gives helpful, "
       "detailed, and polite answers to the user's questions.")
DEMO = ("Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to "
        "you. Please answer my questions.")
WRITTEN = {
    "vicuna_v1": POLITE.format("user") + " USER: <image>\nHow many? ASSISTANT: Two.</s>USER: Sure? ASSISTANT: Yes.</s>",
    "llava_v1": POLITE.format("human") + " USER: <image>\nHow many? ASSISTANT: Two.</s>USER: Sure? ASSISTANT: Yes.</s>",
    "llava_v0": POLITE.format("human") + "\n\n### Human: <image>\nHow many?\n### Assistant: Two.\n### Human: Sure?\n"
                                         "### Assistant: Yes.\n### ",
    "plain": "<image>Two.\nYes.\n",
    "minigpt4": "###Human: <Img><image></Img> How many? ###Assistant: Two.###Human: Sure? ###Assistant: Yes.###",
    "minigpt4_chat": f"{DEMO}###Human: <Img><image></Img> How many?###Assistant: Two.###Human: Sure?###Assistant: "
                     "Yes.###",
    "mplug_owl": f"{OWL}\nHuman: <image>\nHuman: How many?\nAI: Two.</s>\nHuman: Sure?\nAI: Yes.</s>",
}
LEARNED = {"vicuna_v1": [" Two.</s>", " Yes.</s>"], "llava_v1": [" Two.</s>", " Yes.</s>"],
           "llava_v0": [" Two.\n### ", " Yes.\n### "], "plain": ["Two.\nYes.\n"], "minigpt4": ["Two.###", "Yes.###"],
           "minigpt4_chat": ["Two.###", "Yes.###"], "mplug_owl": ["Two.</s>", "Yes.</s>"]}
ASKS = {"vicuna_v1": " ASSISTANT:", "llava_v1": " ASSISTANT:", "llava_v0": "\n### Assistant:", "plain": "<image>",
        "minigpt4": " ###Assistant: ", "minigpt4_chat": "###Assistant: ", "mplug_owl": "\nAI:"}


def written(pieces: list[Piece]) -> str:
    return "".join(text_of(piece) if isinstance(piece, Text) else "<image>" for piece in pieces)


def text_of(piece: Text) -> str:
    return without_marks(piece.text) + "</s>" * piece.is_closed


def learned(pieces: list[Piece]) -> list[str]:
    return [text_of(piece) for piece in pieces if isinstance(piece, Text) and piece.learned]


@pytest.mark.parametrize("name", TEMPLATES)
def test_published_texts_byte_for_byte(name):
    pieces = apply_template(TALK, name)
    assert (written(pieces), learned(pieces)) == (WRITTEN[name], LEARNED[name])
    question = written(apply_template(Conversation(TALK.turns[:1], 1), name, answering=True))
    first = WRITTEN[name][:WRITTEN[name].index("Two.")]
    assert question.endswith(ASKS[name]) and question.rstrip() == first.rstrip()


def test_turns_that_are_not_learned_are_read():
    turns = [*TALK.turns[:1], Turn("assistant", ("Two.",)), *TALK.turns[2:]]
    pieces = apply_template(Conversation(tuple(turns), 1), "vicuna_v1")
    assert (written(pieces), learned(pieces)) == (WRITTEN["vicuna_v1"], [" Yes.</s>"])
    assert len(pieces) == 5  # up to the picture, it, the read answer, a question, an answer


def test_a_system_turn_replaces_the_templates_own_text():
    talk = Conversation((Turn("system", ("Be brief.",)), *TALK.turns[:1]), 1)
    assert written(apply_template(talk, "vicuna_v1", answering=True)) == (
        "Be brief. USER: <image>\nHow many? ASSISTANT:")


def test_pictures_come_first_only_where_the_template_says_so():
    talk = Conversation((Turn("user", ("Is ", Picture(0), " like ", Picture(1), "?")),), 2)
    assert written(apply_template(talk, {"user": "Q: {}", "assistant": "A: {}", "picture": "[{}]"})) == (
        "Q: Is [<image>] like [<image>]?")
    assert written(apply_template(talk, "vicuna_v1")).endswith("USER: <image>\n<image>\nIs like ? ")


def test_control_tokens_in_the_data_are_plain_text():
    talk = Conversation((Turn("user", ("Is </s> a token, \ufdd0</s>\ufdd1 or \ue002?",)), Turn("assistant", ("No.",))))
    first, second = apply_template(talk, {"user": "Q: {}</s>", "assistant": "A: {}"})
    assert first == Text("Q: Is </s> a token, </s> or ?", end=True) and second == Text("A: No.")


@pytest.mark.parametrize(("template", "told"), [
    ("vicuna_v2", "no such template; did you mean 'vicuna_v1'"),
    ({"user": "Q:", "assistant": "A: {}"}, "user is 'Q:'; it must have one slot {}"),
    ({"user": "Q: {}", "assistant": "A: {}", "picture": "<Img></Img>"}, "which takes the picture"),
    ({"user": "Q: {}"}, "assistant is missing; write for example"),
    ({"user": "Q: {}", "asistant": "A: {}"}, "unknown key 'asistant'; did you mean 'assistant'"),
    ({"user": "Q: {}", "assistant": 3}, "assistant must be text, not 3"),
    ({"user": "Q: {}", "assistant": "A: {}", "answer_prefix": "B"}, "does not begin with answer_prefix 'B'"),
])
def test_what_cannot_be_a_template(template, told):
    with pytest.raises(ConfigError) as caught:
        find_template(template)
    assert told in str(caught.value)


# --- the tokenizer's own template ------------------------------------------------------------------------------------
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


class Tokenizer:
    """A tokenizer with a chat template, rendered as transformers renders it."""

    bos_token = "<s>"
    all_special_tokens = ("<s>", "<|im_start|>", "<|im_end|>")

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        def refuse(message: str) -> str:
            raise jinja2.TemplateError(message)

        template = jinja2.Template(self.chat_template or "", trim_blocks=False)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, raise_exception=refuse)


def test_the_tokenizers_template_by_turns():
    talk = Conversation((Turn("system", ("Be brief.",)), *TALK.turns), 1)
    pieces = apply_template(talk, "tokenizer", Tokenizer("<s>" + CHATML))
    assert written(pieces) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes."
        "<|im_end|>\n")
    assert pieces[0].text.startswith("\ufdd0<|im_start|>\ufdd1system\nBe brief.\ufdd0<|im_end|>\ufdd1")
    assert learned(pieces) == ["Two.<|im_end|>\n", "Yes.<|im_end|>\n"]
    assert [piece for piece in pieces if isinstance(piece, Picture)] == [Picture(0)]
    asked = apply_template(Conversation(TALK.turns[:1], 1), "tokenizer", Tokenizer(CHATML), answering=True)
    assert written(asked) == "<|im_start|>user\n<image>\nHow many?<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_without_a_template_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"has no chat template. Choose one of vicuna_v1, llava_v1"):
        apply_template(TALK, "tokenizer", Tokenizer(None))


@pytest.mark.parametrize(("template", "told"), [
    ("{{ messages|length }}" + CHATML, "writes earlier turns in another way once turn"),
    ("{{ raise_exception('no such role') }}", r"refuses turn 1 \(no such role\)"),
])
def test_a_template_that_does_not_extend_or_refuses(template, told):
    with pytest.raises(DataError, match=told):
        apply_template(TALK, "tokenizer", Tokenizer(template))


@pytest.mark.parametrize(("role", "told"), [
    ("narrator", "turn 3 of a conversation is from 'narrator'; "),
    ("system", "turn 3 of a conversation is the system's; a system turn comes first")])
def test_other_roles_are_not_taken_for_answers(role: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        apply_template(Conversation((*TALK.turns[:2], Turn(role, ("Be brief.",))), 1), "vicuna_v1")
