"""Data sets: from a section of YAML to batches. The classes of samples, and below them files, images and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_lite.lazy import lazy_names

if TYPE_CHECKING:
    from lavis_lite.datasets.load import dataset_zoo as dataset_zoo
    from lavis_lite.datasets.load import load_dataset as load_dataset

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(("dataset_zoo", "load_dataset"), "lavis_lite.datasets.load"))
