"""The caption scores that a run names, of a split and by domain; those that cannot be had are told and left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lavis_lite.errors import MissingExtraError
from lavis_lite.metrics.captions import CaptionScores, TokenizedCaptions, token_scores, tokenized
from lavis_lite.metrics.java_scores import Floats, JavaScoreError, meteor_scores, spice_scores

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
SCORES: dict[str, tuple[str, ...]] = {
    "coco": (*BLEU, "ROUGE_L", "CIDEr"),
    "bleu": BLEU,
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "meteor": ("METEOR",),
    "spice": ("SPICE",),
}
"""name in run.caption_metrics -> the scores it stands for"""
MAIN = {"coco": ("CIDEr", "Bleu_4"), "bleu": ("Bleu_4",)}
"""scores that are added up in agg_metrics where they are not those of SCORES; for coco as LAVIS"""
EMPTY = "empty_captions"
_JAVA: dict[str, Callable[[TokenizedCaptions], tuple[float, Floats]]] = {"METEOR": meteor_scores,
                                                                        "SPICE": spice_scores}
_log = logging.getLogger(__name__)


def caption_report(predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], names: Iterable[str],
                   domains: Mapping[Any, str] | None = None) -> dict[str, float]:
    """Scores by name.

    Args:
        predictions, references: as `captions.caption_scores` takes them.
        names: keys of SCORES.
        domains: id -> for instance in-domain, near-domain or out-domain (NoCaps). Each domain is scored as a set of
            its own.

    Returns:
        Bleu_1 ..., as named; <score>_<domain>; empty_captions, how many predictions had no word (they score 0);
        agg_metrics, the sum of the main scores. METEOR or SPICE is missing where it could not be computed: the reason
        is logged.

    Raises:
        DataError: captions that cannot be scored.
    """
    names = list(dict.fromkeys(names))
    wanted = list(dict.fromkeys(score for name in names for score in SCORES[name]))
    captions = tokenized(predictions, references)
    found, whole = _scores(captions, wanted)
    for domain, ids in _by_domain(captions.ids, domains or {}).items():
        part, _ = _scores(captions.of(ids), [name for name in wanted if name in found])
        found |= {f"{name}_{domain}": value for name, value in part.items()}
    main = dict.fromkeys(score for name in names for score in MAIN.get(name, SCORES[name]))
    return found | {EMPTY: float(len(whole.empty)), "agg_metrics": sum(found[name] for name in main if name in found)}


def _scores(captions: TokenizedCaptions, wanted: Sequence[str]) -> tuple[dict[str, float], CaptionScores]:
    whole = token_scores(captions)
    found = {name: whole.scores[name] for name in wanted if name not in _JAVA}
    for name in wanted:
        if name in _JAVA:
            try:
                found[name] = _JAVA[name](captions)[0]
            except (MissingExtraError, JavaScoreError) as fault:
                _log.warning("%s was left out of the scores: %s", name, fault)
    return found, whole


def _by_domain(ids: Sequence[Any], domains: Mapping[Any, str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key in ids:
        if domains.get(key):
            found.setdefault(domains[key], []).append(key)
    return found
