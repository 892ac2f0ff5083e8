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
        text: as it is tokenised. It may mark control tokens (`lavis_lite.processors.text`), so a template removes the
            marks of the data that it contains.
        learned: whether its tokens are targets of training; else they are only read.
        end: whether the language model's end token closes it; None: if it is learned. False if the template has its
            own separator, True for an answer that is read.
    """

    text: str
    learned: bool = False
    end: bool | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the end token follows."""
        return self.learned if self.end is None else self.end


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
