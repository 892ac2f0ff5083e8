"""Batches of chat requests answered by one model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lavis_lite.apps.actions import template_of
from lavis_lite.apps.chat_api import ChatAnswer, ChatRequest
from lavis_lite.apps.models import Loaded
from lavis_lite.conversation import Picture, Turn
from lavis_lite.models.decoding import Decoding
from lavis_lite.models.language import answering
from lavis_lite.models.language.rows import Segment, insert_pictures, size
from lavis_lite.models.protocols import ChatModel
from lavis_lite.processors.chat_templates import apply_template
from lavis_lite.registry import need


class Answers:
    """Answers requests with a model that has a language model.

    Args:
        loaded: a `ChatModel`.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.model = loaded, loaded.model
        self.language = self.model.language_model
        chat = need(self.model, ChatModel, "a server of chat completions").chat(template_of(self.model))
        self.template, self.stop = chat.template, chat.options.stop

    def kind(self, request: ChatRequest) -> Hashable:
        """What requests must share to be answered together; one that streams is answered alone."""
        return id(request) if request.streams else replace(request.options, seeds=None)

    def __call__(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Answers, one for each request."""
        with self.loaded.lock, torch.no_grad():
            sequences = self.sequences(requests)
            read = [size(row) for row in self.language.answer_rows(sequences)]
            options = self.options(requests)
            found = ([self._streamed(requests[0], sequences, options)] if requests[0].streams else
                     answering.answers(self.language, sequences, options, scored=False))
        return [ChatAnswer(answer.text, "length" if answer.ending == "length" else "stop", count, answer.tokens)
                for answer, count in zip(found, read, strict=True)]

    def sequences(self, requests: Sequence[ChatRequest]) -> list[list[Segment]]:
        """Conversations as the language model reads them; all pictures are encoded together."""
        pictures = [picture for request in requests for picture in request.pictures]
        beside = [text for request in requests for text in _beside(request.conversation.turns)]
        vectors = iter(self._vectors(pictures, beside))
        tokenizer = self.language.tokenizer.loaded
        return [insert_pictures(apply_template(request.conversation, self.template, tokenizer, answering=True),
                                [next(vectors) for _ in request.pictures]) for request in requests]

    def _vectors(self, pictures: Sequence[Any], beside: list[str]) -> list[Tensor]:
        if not pictures:
            return []
        images = torch.stack([self.loaded.images(picture) for picture in pictures]).to(self.model.device)
        return list(self.model.embed_image(images, beside))

    def options(self, requests: Sequence[ChatRequest]) -> Decoding:
        """The options that all of them share, with each one's seed, and the stop strings of the template."""
        shared = requests[0].options
        seeds = None if shared.seeds is None else tuple(seed for one in requests for seed in one.options.seeds or ())
        return replace(shared, seeds=seeds, stop=tuple(dict.fromkeys((*shared.stop, *self.stop))))

    def _streamed(self, request: ChatRequest, sequences: list[list[Segment]], options: Decoding) -> answering.Answer:
        text, pieces = "", answering.stream(self.language, sequences, options)
        while not request.cancelled():
            try:
                piece = next(pieces)
            except StopIteration as end:
                whole: answering.Answer = end.value
                return whole
            text += piece
            if request.stream is not None:
                request.stream(piece)
        return answering.Answer(text)


def _beside(turns: Sequence[Turn]) -> list[str]:
    """For each picture, the text of its turn, which an instruction-aware Q-Former reads."""
    return [" ".join(part for part in turn.parts if isinstance(part, str))
            for turn in turns for piece in turn.parts if isinstance(piece, Picture)]
