"""What people and a model say to each other about pictures. Needs no torch.

Data sets read every dialect into `Conversation`. A chat template turns one into texts and pictures in order. A model
puts vectors in the pictures' places, and gives its language model the segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """A piece of text in front of a language model.

    Attributes:
        text: as it is tokenised.
        learned: whether its tokens are targets of training; else they are only read.
    """

    text: str
    learned: bool = False


@dataclass(frozen=True)
class Picture:
    """The place of an image or a video.

    Attributes:
        index: which of the row's pictures, from 0.
    """

    index: int = 0


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: system | user | assistant.
        parts: texts and pictures in order.
        learned: whether training learns it; only an assistant's turn can be.
    """

    role: Role
    parts: tuple[str | Picture, ...]
    learned: bool = False


@dataclass(frozen=True)
class Conversation:
    """Turns in order.

    Attributes:
        turns: of all sides.
        pictures: how many pictures the row has; the turns point to each exactly once.
    """

    turns: tuple[Turn, ...]
    pictures: int = 0
