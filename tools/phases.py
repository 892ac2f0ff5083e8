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
RELATING = ("color", "shape", "count", "count", "count", "where", "what", "places", "pair", "attribute", "existence",
            "existence", "relation", "relation", "relation", "relation", "alike", "alike", "comparison", "comparison",
            "comparison", "comparison")
Phases = tuple[tuple[float, Mix], ...]
"""(share of the steps until which, what documents are made of)"""

PHASES: Phases = ((0.02, Mix(EASY, (0,), objects=1, blended=0.8)),
                  (0.13, Mix(NAMING, (0, 0, 0, 1), blended=0.8)),
                  (0.27, Mix(NAMING + CONFIRMING, (0, 1, 2, 4))),
                  (1.0, Mix(RELATING, (0, 2, 4, 8, 10))))
