"""What a task says of one evaluated sample, so that a page can show it and two runs can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

MISSED = 0
"""rank of a query none of whose right candidates is among those that were kept"""


@dataclass(frozen=True)
class Picture:
    """A picture by name; samples that share a name share one thumbnail.

    Args:
        name: its identity within one report.
        load: file content, or a decoded image; called in the thread that writes the report. It may raise DataError.
    """

    name: str
    load: Callable[[], bytes | Image.Image] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Candidate:
    """One of the things that were ranked.

    Attributes:
        text: a candidate answer, or a caption.
        value: by which it was ranked: a log-likelihood, a cosine ...
        share: length of its bar, in [0, 1]; None: no bar.
        right: whether it is an answer to the query.
        picture: where pictures are ranked.
    """

    text: str = ""
    value: float | None = None
    share: float | None = None
    right: bool = False
    picture: Picture | None = None


@dataclass(frozen=True)
class ReportSample:
    """One sample of an evaluation.

    Attributes:
        id: as in the predictions file; different for all samples of a report.
        prediction: what the model said.
        prompt: what it was asked, or the text it searched with.
        context: what stood before that, such as a dialogue so far.
        references: right answers.
        scores: by name; the first is the main one. A name that the split's metrics have too is the mean of these.
        right: whether the sample counts as solved; None where there is no such thing.
        picture: what the model saw.
        candidates: best first.
        rank: place of the first right candidate, from 1; MISSED; None where nothing was ranked.
        group: by which samples can be told apart, such as the type of question.
    """

    id: int | str
    prediction: str = ""
    prompt: str = ""
    references: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    right: bool | None = None
    picture: Picture | None = None
    candidates: Sequence[Candidate] = ()
    rank: int | None = None
    group: str = ""
    context: str = ""

    @property
    def score(self) -> float | None:
        """The main score."""
        return next(iter(self.scores.values()), None)

    def row(self) -> dict[str, Any]:
        """What the samples file holds of it: everything but pictures and candidates."""
        row: dict[str, Any] = {"id": self.id, "scores": {name: finite(value) for name, value in self.scores.items()}}
        said = self.prediction if self.prediction or self.rank is None else None
        named = {"right": self.right, "rank": self.rank, "group": self.group or None,
                 "context": self.context or None, "prompt": self.prompt or None, "prediction": said,
                 "references": list(self.references) or None}
        return row | {key: value for key, value in named.items() if value is not None}


def ranked(texts: Sequence[str], log_likelihoods: Sequence[float], right: Sequence[str] = ()) -> list[Candidate]:
    """Candidate answers by log-likelihood (nats), likeliest first, with bars as long as their share of the mass."""
    order = sorted(range(len(texts)), key=lambda place: -log_likelihoods[place])
    most = max(log_likelihoods, default=0.0)
    mass = sum(math.exp(value - most) for value in log_likelihoods)
    return [Candidate(texts[place], log_likelihoods[place], math.exp(log_likelihoods[place] - most) / mass,
                      texts[place] in right) for place in order]


def finite(value: float) -> float | None:
    """A number that JSON has; None in place of the others."""
    return float(value) if math.isfinite(value) else None
