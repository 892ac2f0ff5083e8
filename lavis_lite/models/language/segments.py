"""What a language model reads: per sample a list of segments, each a text or vectors in the space of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lavis_lite.conversation import Text


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
