"""What a task reports of one evaluated sample: a page shows it, and `compare` compares two runs by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

MISSED = 0
"""rank of a query if none of its right candidates was kept"""


@dataclass(frozen=True)
class Picture:
    """A picture by name; samples that share a name share one thumbnail.

    Args:
        name: unique within one report.
        load: returns file content or a decoded image; called in the thread that writes the report. It may raise
            DataError.
    """

    name: str
    load: Callable[[], bytes | Image.Image] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Candidate:
    """One ranked candidate.

    Attributes:
        text: a candidate answer, or a caption.
        value: the number by which it was ranked: a log-likelihood, a cosine ...
        share: length of its bar, in [0, 1]; None: no bar.
        right: whether it is a right answer to the query.
        picture: if pictures are ranked.
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
        prediction: the model's text.
        prompt: the question, or the text of the query.
        context: the text before the prompt, such as a dialogue so far.
        attention: for each word of the prediction, its text and a picture of where the model looks.
        references: right answers.
        scores: by name; the first is the main one. The split's metric of the same name is their mean.
        right: whether the sample counts as solved; None: it cannot.
        picture: the input image.
        candidates: best first.
        rank: of the first right candidate, from 1; MISSED; None if nothing was ranked.
        group: by which samples can be filtered, such as the type of question.
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
    attention: Sequence[Candidate] = ()

    @property
    def score(self) -> float | None:
        """The main score."""
        return next(iter(self.scores.values()), None)


def ranked(texts: Sequence[str], log_likelihoods: Sequence[float], right: Sequence[str] = ()) -> list[Candidate]:
    """Candidate answers by log-likelihood (nats), likeliest first, with bars as long as their share of the mass."""
    order = sorted(range(len(texts)), key=lambda index: -log_likelihoods[index])
    most = max(log_likelihoods, default=0.0)
    mass = sum(math.exp(value - most) for value in log_likelihoods)
    return [Candidate(texts[index], log_likelihoods[index], math.exp(log_likelihoods[index] - most) / mass,
                      texts[index] in right) for index in order]


def finite(value: float) -> float | None:
    """The number; None for NaN and infinity, which JSON does not have."""
    return float(value) if math.isfinite(value) else None
