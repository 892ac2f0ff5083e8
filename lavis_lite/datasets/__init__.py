"""See the modules of this room."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["dataset_zoo", "load_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lavis_lite.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module("lavis_lite.datasets.load"), name)
