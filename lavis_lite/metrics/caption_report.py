"""The caption scores that a run names: of a split, by domain and by image, with reasons for missing ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavis_lite.errors import ConfigError, MissingExtraError, did_you_mean
from lavis_lite.metrics.captions import TokenizedCaptions, token_scores, tokenized
from lavis_lite.metrics.java_scores import Floats, JavaScoreError, Scored, meteor_of_parts, spice_of_parts

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
SCORES: dict[str, tuple[str, ...]] = {
    "coco": (*BLEU, "ROUGE_L", "CIDEr"),
    "bleu": BLEU,
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "meteor": ("METEOR",),
    "spice": ("SPICE",),
}
"""name in run.caption_metrics -> its scores"""
MAIN = {"coco": ("CIDEr", "Bleu_4"), "bleu": ("Bleu_4",)}
"""scores that agg_metrics adds up, if not those of SCORES; coco: as in LAVIS"""
EMPTY = "empty_captions"
Parts = Sequence[Sequence[int]]
_JAVA: dict[str, Callable[[TokenizedCaptions, Parts], list[Scored]]] = {"METEOR": meteor_of_parts,
                                                                        "SPICE": spice_of_parts}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionReport:
    """Scores of a split.

    Attributes:
        scores: the named scores (Bleu_1 ...); <score>_<domain>; empty_captions, the number of empty predictions, which
            score 0; agg_metrics, the sum of the main scores. METEOR and SPICE enter agg_metrics only if no other score
            is named, so that it does not depend on what is installed.
        ids: image ids.
        per_image: name -> float64[I], in the order of `ids`. The BLEU of a split is not the mean of these.
        missing: METEOR or SPICE -> why it could not be computed.
    """

    scores: dict[str, float]
    ids: list[Any]
    per_image: dict[str, Floats]
    missing: dict[str, str] = field(default_factory=dict)


def caption_report(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], names: Iterable[str],
                   domains: Mapping[Any, str] | None = None) -> CaptionReport:
    """Scores by name.

    Args:
        predictions, references: as for `captions.caption_scores`.
        names: keys of SCORES.
        domains: id -> domain, such as in-domain, near-domain or out-domain (NoCaps). Each domain is scored separately.

    Raises:
        ConfigError: a name is not one of SCORES.
        DataError: the captions cannot be scored.
    """
    names = list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in SCORES]:
        raise ConfigError(f"there are no caption scores {unknown[0]!r}; {did_you_mean(unknown[0], SCORES)}")
    wanted = list(dict.fromkeys(score for name in names for score in SCORES[name]))
    captions = tokenized(predictions, references)
    indices = _by_domain(captions.ids, domains or {})
    whole = token_scores(captions)
    each, missing = dict(whole.per_image), {}
    by_part = [whole.scores, *(token_scores(captions.of([captions.ids[at] for at in part])).scores
                               for part in indices.values())]
    for name in (name for name in wanted if name in _JAVA):
        try:
            found = _JAVA[name](captions, list(indices.values()))
        except (MissingExtraError, JavaScoreError) as error:
            missing[name] = str(error)
            _log.warning("%s was not computed: %s", name, error)
            continue
        each[name] = found[0][1]
        for scores, (score, _) in zip(by_part, found, strict=True):
            scores[name] = score
    scores = {f"{name}{suffix}": part[name]
              for suffix, part in zip(["", *(f"_{domain}" for domain in indices)], by_part, strict=True)
              for name in wanted if name in part}
    scores |= {EMPTY: float(len(whole.empty)), **_aggregate(names, whole.scores)}
    return CaptionReport(scores, captions.ids, {name: each[name] for name in each if name in wanted}, missing)


def _aggregate(names: Sequence[str], scores: Mapping[str, float]) -> dict[str, float]:
    """agg_metrics; empty if none of its scores could be computed."""
    main = dict.fromkeys(score for name in names for score in MAIN.get(name, SCORES[name]))
    always = [score for score in main if score not in _JAVA]
    there = [scores[name] for name in always or main if name in scores]
    return {"agg_metrics": sum(there)} if there else {}


def _by_domain(ids: Sequence[Any], domains: Mapping[Any, str]) -> dict[str, list[int]]:
    """Domain -> indices of its images."""
    found: dict[str, list[int]] = {}
    for index, key in enumerate(ids):
        if domains.get(key):
            found.setdefault(domains[key], []).append(index)
    return found
