"""A conversation with a model: pictures may come at any turn, and answers arrive piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lavis_lite.conversation import Conversation, Picture, Turn
from lavis_lite.errors import ConfigError
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.language.contract import LanguageModel
from lavis_lite.models.language.rows import insert_pictures
from lavis_lite.processors.chat_templates import END, SLOT, ChatTemplate, apply_template, find_template

Embed = Callable[[Tensor, str], Tensor]
"""(image float[1,3,H,W], the text beside it) -> its vectors float[n,D]"""


class Chat:
    """A conversation that remembers its turns and the vectors of its pictures.

    Args:
        language_model: writes the answers.
        embed: gives the vectors of a picture, once.
        template: a name of `TEMPLATES`, `tokenizer`, or the keys of a `ChatTemplate`.
        options: how answers are written; they also end where the template's own separator begins.
        system: the system turn; None: the template's own text.

    Raises:
        ConfigError: the template cannot be.
    """

    def __init__(self, language_model: LanguageModel, embed: Embed, template: str | Mapping[str, Any] | ChatTemplate,
                 options: Decoding | None = None, system: str | None = None) -> None:
        self.language_model, self.embed, self.template, self.system = language_model, embed, template, system
        found = find_template(template)
        separator = "" if found is None else found.assistant.partition(SLOT)[2].replace(END, "").strip()
        options = options or Decoding(max_new_tokens=128)
        self.options = dataclasses.replace(options, stop=(*options.stop, *([separator] if separator else [])))
        self.reset()

    def reset(self) -> None:
        """Forget all turns and pictures."""
        self.turns = [] if self.system is None else [Turn("system", (self.system,))]
        self.vectors: list[Tensor] = []

    def ask(self, text: str, images: Sequence[Tensor] = ()) -> str:
        """The answer to a user's turn; arguments and errors as `stream`."""
        return "".join(self.stream(text, images))

    def stream(self, text: str, images: Sequence[Tensor] = ()) -> Iterator[str]:
        """The answer to a user's turn, piece by piece.

        An answer is forgotten if it is not read to its end, or if the conversation went on or began anew meanwhile.

        Args:
            text: of the turn.
            images: its pictures, each float[3,H,W] as the image processor gives it; they come before the text.

        Raises:
            ConfigError: the turn is no text, or a picture no such tensor.
            TextTooLongError: the conversation has no more room in the model's positions.
        """
        _check_turn(text, images)
        begun = self.turns
        with torch.no_grad():
            vectors = [*self.vectors, *(self.embed(image[None], text) for image in images)]
        pictures = tuple(Picture(number) for number in range(len(self.vectors), len(vectors)))
        turns = [*self.turns, Turn("user", (*pictures, text))]
        conversation = Conversation(tuple(turns), len(vectors))
        pieces = apply_template(conversation, self.template, self.language_model.tokenizer.loaded, answering=True)
        answer = ""
        for piece in self.language_model.generate_stream([insert_pictures(pieces, vectors)], self.options):
            answer += piece
            yield piece
        if self.turns is begun:
            self.turns, self.vectors = [*turns, Turn("assistant", (answer or " ",))], vectors


def _check_turn(text: object, images: object) -> None:
    """Raise ConfigError unless a turn is a text and a list of processed pictures."""
    if not isinstance(text, str):
        raise ConfigError(f"chat: a turn is a text, not {type(text).__name__}.")
    given = images if isinstance(images, list | tuple) else [images]
    wrong = next((one for one in given if not isinstance(one, Tensor) or one.ndim != 3), None)
    if wrong is not None or given is not images:
        found = f"float{list(images.shape)}" if isinstance(images, Tensor) else type(wrong).__name__
        raise ConfigError(f"chat: images must be a list of tensors float[3,H,W], as vis_processors['eval'](picture) "
                          f"makes them, not {found}.")
