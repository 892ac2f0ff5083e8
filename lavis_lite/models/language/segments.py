"""What a language model reads: per sample a list of segments, each a text or vectors in the space of its words.

    [Text("USER: "), Vectors(patches), Text(" What is it? ASSISTANT:"), Text("A cup.", learned=True)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lavis_lite.conversation import Picture, Text
from lavis_lite.errors import ConfigError, DataError, shown


@dataclass(frozen=True)
class Vectors:
    """Vectors that stand where words stand: query tokens, patches, frames. They are read, never learned.

    Attributes:
        values: float[n,D], n >= 0.
    """

    values: Tensor


Segment = Text | Vectors
Segments = Sequence[Segment]
"""one sample, in order"""


def insert_pictures(parts: Sequence[Text | Picture], vectors: Sequence[Tensor]) -> list[Segment]:
    """A conversation's parts with the vectors of each picture in its place.

    Args:
        parts: texts and pictures in order.
        vectors: float[n,D] of each picture of the row; n may differ.

    Raises:
        DataError: the parts do not point to every picture exactly once.
    """
    given = [part.index for part in parts if isinstance(part, Picture)]
    if sorted(given) != list(range(len(vectors))):
        raise DataError(f"the conversation has places for the pictures {given}, and {len(vectors)} came; it must have "
                        "one place for each picture, counted from 0.")
    return [Vectors(vectors[part.index]) if isinstance(part, Picture) else part for part in parts]


def check_segments(sequences: Sequence[Segments], width: int) -> None:
    """Refuse what is no list of segments.

    Args:
        sequences: B lists of segments.
        width: D, of the word embeddings.

    Raises:
        ConfigError: names the row and the segment.
    """
    for row, segments in enumerate(sequences):
        if isinstance(segments, (str, Text, Vectors)) or not isinstance(segments, Sequence):
            raise ConfigError(f"row {row}: a sequence is a list of Text and Vectors, not {shown(segments)}.")
        for number, segment in enumerate(segments):
            if isinstance(segment, Vectors):
                shape = tuple(segment.values.shape)
                if len(shape) != 2 or shape[1] != width:
                    raise ConfigError(f"row {row}, segment {number}: vectors have shape (n, {width}), not {shape}.")
            elif not isinstance(segment, Text):
                raise ConfigError(f"row {row}, segment {number}: must be Text or Vectors, not {shown(segment)}.")
