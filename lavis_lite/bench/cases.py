"""The comparisons of a benchmark, by its name."""

from __future__ import annotations

import importlib

import torch

from lavis_lite.bench.options import Options
from lavis_lite.bench.timing import Case


def cases(options: Options, device: torch.device, seed: int) -> list[Case]:
    """What `options.what` compares on a device, with the batches of a rank's seed; nothing is built yet."""
    module = importlib.import_module(f"lavis_lite.bench.{options.what}")
    found = module.case(options, device, seed)
    return found if isinstance(found, list) else [found]
