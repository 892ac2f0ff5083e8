"""In which order the mini language models learn: what documents are made of in each phase of the training.

Questions of yes and no come late: a model that cannot find an object yet learns nothing from them, and they keep it
from learning to find one. For the same reason contexts are mostly one vector for each object at first.
"""

from __future__ import annotations

from tools.documents import Mix

EASY = ("color", "shape", "count", "where", "what", "size")
NAMING = ("color", "color", "shape", "shape", "count", "count", "count", "where", "what", "places", "size", "pair")
CONFIRMING = ("attribute", "attribute", "present", "existence", "existence", "relation", "relation", "alike",
              "comparison", "comparison")
HARD = ("color", "shape", "count", "count", "count", "where", "what", "places", "pair", "attribute", "existence",
        "existence", "relation", "relation", "alike", "comparison", "comparison", "comparison", "comparison")
RELATING = ("color", "shape", "count", "count", "count", "where", "what", "places", "pair", "attribute", "existence",
            "existence", "relation", "relation", "relation", "relation", "alike", "alike", "comparison", "comparison",
            "comparison", "comparison")
Phases = tuple[tuple[float, Mix], ...]
"""(share of the steps until which, what documents are made of)"""


def _phases(naming: float, confirming: float, hard: float, kinds: tuple[str, ...]) -> Phases:
    """Phases that begin with naming at most four objects, confirming and `kinds` after these shares of the steps."""
    return ((naming, Mix(EASY, (0,), objects=1, blended=0.8)),
            (confirming, Mix(NAMING, (0, 0, 0, 1), blended=0.8)),
            (hard, Mix(NAMING + CONFIRMING, (0, 1, 2, 4))),
            (1.0, Mix(kinds, (0, 2, 4, 8, 10))))


PHASES = {"opt": _phases(0.02, 0.13, 0.27, RELATING), "t5": _phases(0.03, 0.2, 0.4, HARD)}
"""by family; the T5 has not been trained by the newer phases of the OPT"""
