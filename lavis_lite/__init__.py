"""lavis_lite: vision-language experiments (BLIP-2, InstructBLIP) assembled from YAML and trained by one loop.

Importing this package loads neither torch nor transformers nor timm; public names resolve on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

from lavis_lite import moved

__version__ = "0.1.0"

moved.install()

_LAZY = {
    "LavisLiteError": "lavis_lite.errors",
    "dataset_zoo": "lavis_lite.datasets.load",
    "list_models": "lavis_lite.zoo",
    "load_dataset": "lavis_lite.datasets.load",
    "load_model": "lavis_lite.zoo",
    "load_model_and_preprocess": "lavis_lite.zoo",
    "load_preprocess": "lavis_lite.zoo",
    "model_zoo": "lavis_lite.zoo",
}

__all__ = ["LavisLiteError", "__version__", "dataset_zoo", "list_models", "load_dataset", "load_model",
           "load_model_and_preprocess", "load_preprocess", "model_zoo"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lavis_lite' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
