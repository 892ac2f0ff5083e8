"""Data sets: from a section of YAML to batches. The classes of samples, and below them files, images and order."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["dataset_zoo", "load_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lavis_lite.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module("lavis_lite.datasets.load"), name)
