"""Models: vision encoders, the Q-Former, language models and the families built from them.

LAVIS' names for loading models are found here too, resolved on first use (see `lavis_lite.zoo`).
"""

from __future__ import annotations

import importlib
from typing import Any

_OF_THE_ZOO = ("list_models", "load_model", "load_model_and_preprocess", "load_preprocess", "model_zoo")


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_ZOO:
        raise AttributeError(f"module 'lavis_lite.models' has no attribute {name!r}")
    return getattr(importlib.import_module("lavis_lite.zoo"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_THE_ZOO])
