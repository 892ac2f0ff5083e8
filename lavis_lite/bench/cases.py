"""The comparisons of a benchmark, by its name."""

from __future__ import annotations

import importlib

import torch

from lavis_lite.bench.options import Options
from lavis_lite.bench.timing import Case


def cases(options: Options, device: torch.device, seed: int) -> list[Case]:
    """What `options.what` compares; nothing is built yet.

    Args:
        options: checked.
        device: of this rank.
        seed: of this rank's batches.
    """
    module = importlib.import_module(f"lavis_lite.bench.{options.what}")
    found = module.case(options, device, seed)
    return found if isinstance(found, list) else [found]
