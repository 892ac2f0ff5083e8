"""Chat templates: a conversation -> the texts and pictures, in order, that a language model reads and learns.

A template is four texts with a slot `{}` for what a side says. The published ones are rows of `TEMPLATES`. The template
`tokenizer` is the one that a language model's own tokenizer brings (transformers' `apply_chat_template`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, get_args

from lavis_lite.conversation import Conversation, Picture, Role, Text, Turn
from lavis_lite.errors import ConfigError, DataError, did_you_mean, shown
from lavis_lite.processors.text import control_token, without_marks

Piece = Text | Picture
SLOT = "{}"
OWN = "tokenizer"
"""name of the template that the tokenizer brings"""
END = "</s>"
"""in a template: the language model's end token"""
_END = "\ue002"
"""stands for it in texts; the three characters for private use are in no text of the data"""
_PRIVATE = re.compile("[\ue000-\ue002]")
SLOTS = ("system_form", "user", "assistant", "picture")


@dataclass(frozen=True)
class ChatTemplate:
    """How the turns of a conversation are written.

    An answer and what follows it in `assistant` are learned; the rest is read. `</s>` stands for the language model's
    own end token.

    Attributes:
        user: a user's turn, with a slot.
        assistant: an answer, with a slot.
        system: the text of conversations without a system turn.
        system_form: a system text, with a slot. It begins every conversation, also with an empty text.
        picture: a picture, with a slot.
        pictures_first: a turn's pictures come before its text, whatever place they have in the data.
        answers_only: texts of the user and of the system are left out (LLaVA's first stage).
        answer_prefix: what of `assistant` is read before an answer. None: all up to the slot but white space, because
            the space belongs to the first token of the answer.
        generation_prompt: the end of a text that is to be answered. None: as `answer_prefix`.

    Raises:
        ConfigError: a text has no slot or several, or `assistant` does not begin with `answer_prefix`.
    """

    user: str
    assistant: str
    system: str = ""
    system_form: str = SLOT
    picture: str = SLOT
    pictures_first: bool = False
    answers_only: bool = False
    answer_prefix: str | None = None
    generation_prompt: str | None = None

    def __post_init__(self) -> None:
        for key in SLOTS:
            if getattr(self, key).count(SLOT) != 1:
                raise ConfigError(f"chat template: {key} is {shown(getattr(self, key))}; it must have one slot {SLOT}, "
                                  f"which takes {'the picture' if key == 'picture' else 'what is said'}.")
        if not self.assistant.startswith(self.prefix):
            raise ConfigError(f"chat template: assistant is {shown(self.assistant)}, which does not begin with "
                              f"answer_prefix {shown(self.prefix)}.")

    @property
    def prefix(self) -> str:
        """What is read before an answer."""
        return self.assistant.partition(SLOT)[0].rstrip() if self.answer_prefix is None else self.answer_prefix

    @property
    def prompt(self) -> str:
        """The end of a text that is to be answered."""
        return self.prefix if self.generation_prompt is None else self.generation_prompt


def _polite(person: str, assistant: str = "an artificial intelligence assistant") -> str:
    return (f"A chat between a curious {person} and {assistant}. The assistant gives helpful, detailed, and polite "
            f"answers to the {person}'s questions.")


_MINIGPT4 = ChatTemplate("Human: {} ###", "Assistant: {}###", system_form="{}###", picture="<Img>{}</Img> ",
                         pictures_first=True, answer_prefix="Assistant: ")
TEMPLATES: dict[str, ChatTemplate] = {
    "vicuna_v1": ChatTemplate("USER: {} ", "ASSISTANT: {}</s>", _polite("user"), "{} ", "{}\n", pictures_first=True),
    "llava_v1": ChatTemplate("USER: {} ", "ASSISTANT: {}</s>", _polite("human"), "{} ", "{}\n", pictures_first=True),
    "llava_v0": ChatTemplate("Human: {}\n### ", "Assistant: {}\n### ", _polite("human"), "{}\n\n### ", "{}\n",
                             pictures_first=True),
    "plain": ChatTemplate(SLOT, "{}\n", pictures_first=True, answers_only=True),
    "minigpt4": _MINIGPT4,
    "minigpt4_chat": ChatTemplate(
        "Human: {}###", _MINIGPT4.assistant,
        "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to "
        "you. Please answer my questions.", _MINIGPT4.system_form, _MINIGPT4.picture, pictures_first=True,
        answer_prefix=_MINIGPT4.answer_prefix),
    "mplug_owl": ChatTemplate(
        "\nHuman: {}", "\nAI: {}</s>",
        "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.", picture="{}\nHuman: ", pictures_first=True,
        answer_prefix="\nAI: ", generation_prompt="\nAI:"),
}
"""name -> template: LLaVA's (1.5: vicuna_v1, first stage: plain), MiniGPT-4's second stage and demo, mPLUG-Owl's"""


def find_template(template: str | Mapping[str, Any] | ChatTemplate) -> ChatTemplate | None:
    """The template of a name or of a section of YAML; None: the tokenizer's own.

    Raises:
        ConfigError: unknown name or key, or a template that cannot be.
    """
    if isinstance(template, ChatTemplate):
        return template
    if isinstance(template, str):
        if template != OWN and template not in TEMPLATES:
            hint = did_you_mean(template, [*TEMPLATES, OWN])
            raise ConfigError(f"chat template {template!r}: there is no such template; {hint}")
        return TEMPLATES.get(template)
    known = [field.name for field in fields(ChatTemplate)]
    for key, value in template.items():
        if key not in known:
            raise ConfigError(f"chat template: unknown key {key!r}; {did_you_mean(str(key), known)}")
        wanted = bool if key in ("pictures_first", "answers_only") else str
        if not isinstance(value, wanted):
            raise ConfigError(f"chat template: {key} must be {'true or false' if wanted is bool else 'text'}, not "
                              f"{shown(value)}.")
    lacking = [key for key in ("user", "assistant") if key not in template]
    if lacking:
        raise ConfigError(f"chat template: {lacking[0]} is missing; write for example {lacking[0]}: "
                          f"{getattr(TEMPLATES['vicuna_v1'], lacking[0])!r}.")
    return ChatTemplate(**template)


def apply_template(conversation: Conversation, template: str | Mapping[str, Any] | ChatTemplate, tokenizer: Any = None,
                   answering: bool = False) -> list[Piece]:
    """The texts and pictures of a conversation in order.

    Args:
        conversation: its learned turns give learned texts.
        template: a name of `TEMPLATES`, `tokenizer`, the keys of a `ChatTemplate`, or one.
        tokenizer: of transformers; its end of a text and its chat template are used.
        answering: the conversation ends with a question, and the text with what comes before the answer.

    Returns:
        Neighbouring texts of one kind are one text. `Text.end` is true before an end token. The token that begins a
        text is not there: language models add it. Control tokens that the data spell out are plain text.

    Raises:
        ConfigError: see `find_template`; or the tokenizer has no template of its own.
        DataError: a turn is from an unknown role, or a late one of the system. Or the tokenizer's template refuses the
            conversation, or changes earlier turns.
    """
    _check_roles(conversation)
    found = find_template(template)
    if found is None:
        return list(_closed(joined(_by_tokenizer(conversation, tokenizer, answering))))
    return list(_closed(joined(_by_template(conversation, found, answering))))


def _check_roles(conversation: Conversation) -> None:
    """Raise DataError unless only the first turn is the system's, and all others are the user's or the assistant's."""
    for number, turn in enumerate(conversation.turns, 1):
        if turn.role not in get_args(Role):
            raise DataError(f"turn {number} of a conversation is from {turn.role!r}; "
                            f"{did_you_mean(str(turn.role), get_args(Role))}")
        if turn.role == "system" and number > 1:
            raise DataError(f"turn {number} of a conversation is the system's; a system turn comes first.")


def _closed(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, with their texts cut after every end token; these are `Text.end`."""
    for piece in pieces:
        if isinstance(piece, Picture):
            yield piece
            continue
        *closed, rest = piece.text.split(_END)
        yield from (Text(text, piece.learned, None if piece.learned else True) for text in closed)
        if rest:
            yield Text(rest, piece.learned, False if piece.learned else None)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces without empty texts, neighbouring texts of one kind as one."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Text) and isinstance(last, Text) and piece.learned == last.learned:
            found[-1] = Text(last.text + piece.text, last.learned)
        elif isinstance(piece, Picture) or piece.text:
            found.append(piece)
    return found


# --- templates of texts ----------------------------------------------------------------------------------------------
def _by_template(conversation: Conversation, template: ChatTemplate, answering: bool) -> Iterator[Piece]:
    turns = list(conversation.turns)
    given = turns.pop(0) if turns and turns[0].role == "system" else Turn("system", (template.system,))
    yield from _written(given, template.system_form, template)
    for turn in turns:
        if turn.role == "user":
            yield from _written(turn, template.user, template)
        else:
            yield Text(template.prefix)
            rest = template.assistant.removeprefix(template.prefix)
            yield from _written(turn, rest, template)
    if answering:
        yield Text(template.prompt)


def _written(turn: Turn, form: str, template: ChatTemplate) -> Iterator[Piece]:
    before, _, after = form.replace(END, _END).partition(SLOT)
    yield Text(before, turn.learned)
    opening, _, closing = template.picture.partition(SLOT)
    for part in _arranged(turn, template):
        if isinstance(part, Picture):
            yield from (Text(opening, turn.learned), part, Text(closing, turn.learned))
        else:
            yield Text(_plain(part), turn.learned)
    yield Text(after, turn.learned)


def _plain(text: str) -> str:
    """A text of the data, in which no character means anything else."""
    return _PRIVATE.sub("", without_marks(text))


def _arranged(turn: Turn, template: ChatTemplate) -> list[str | Picture]:
    """A turn's parts in the order of the template."""
    if not template.pictures_first:
        return list(turn.parts)
    pictures = [part for part in turn.parts if isinstance(part, Picture)]
    if template.answers_only and turn.role != "assistant":
        return [*pictures]
    texts = [part for part in turn.parts if isinstance(part, str)]
    text = "".join(texts) if not pictures else " ".join(filter(None, map(str.strip, texts)))
    return [*pictures, text]


# --- the tokenizer's own template ------------------------------------------------------------------------------------
_CONTENT = re.compile("\ue000(\\d+)\ue001")
"""stands for a turn's content while a tokenizer's template is rendered"""


def _by_tokenizer(conversation: Conversation, tokenizer: Any, answering: bool) -> Iterator[Piece]:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("chat template 'tokenizer': the language model's tokenizer has no chat template. Choose "
                          f"one of {', '.join(TEMPLATES)}, or write your own: user: and assistant:.")
    messages = [{"role": turn.role, "content": f"\ue000{number}\ue001"}
                for number, turn in enumerate(conversation.turns)]
    pieces = partial(_pieces, conversation, control_tokens(tokenizer))
    written = ""
    for number, turn in enumerate(conversation.turns, 1):
        if turn.role == "assistant":
            asked = _extended(tokenizer, messages[:number - 1], written, True)
            yield from pieces(asked[len(written):], False)
            written = asked
        elif number < len(messages) and messages[number]["role"] != "assistant":
            continue  # rendered with what follows: some templates refuse a system turn alone
        whole = _extended(tokenizer, messages[:number], written, False)
        yield from pieces(whole[len(written):], turn.learned)
        written = whole
    if answering:
        yield from pieces(_extended(tokenizer, messages, written, True)[len(written):], False)


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds the control tokens of a tokenizer in a text."""
    names = {*getattr(tokenizer, "all_special_tokens", ()), *getattr(tokenizer, "added_tokens_encoder", ())} - {""}
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def _extended(tokenizer: Any, messages: list[dict[str, str]], before: str, asks: bool) -> str:
    """The messages as the tokenizer's template writes them.

    Raises:
        DataError: the template refuses them, or what stood before is written in another way now.
    """
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # whatever a template of somewhere else raises
        raise DataError(f"the tokenizer's chat template refuses turn {len(messages)} ({error}). Take the turn out, or "
                        f"choose one of {', '.join(TEMPLATES)}.") from error
    text = text.removeprefix(getattr(tokenizer, "bos_token", None) or "")
    if not text.startswith(before):
        raise DataError(f"the tokenizer's chat template writes earlier turns in another way once turn {len(messages)} "
                        "follows, so that the answers of one sequence cannot be separated. Learn only the last "
                        f"answer in rows of one answer each, or choose one of {', '.join(TEMPLATES)}.")
    return text


def _pieces(conversation: Conversation, control: re.Pattern[str], text: str, learned: bool) -> Iterator[Piece]:
    """The pieces of a part of a rendered text; its control tokens are marked."""
    for number, part in enumerate(_CONTENT.split(text)):
        if number % 2:
            yield from (Text(_plain(item), learned) if isinstance(item, str) else item
                        for item in conversation.turns[int(part)].parts)
        else:
            yield Text(control.sub(lambda found: control_token(found[0]), part), learned)
