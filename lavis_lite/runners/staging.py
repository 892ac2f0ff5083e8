"""Pictures on their way to a GPU while it still computes the step before."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from lavis_lite.datasets.loading.loader import PICTURES
from lavis_lite.processors.pixels import Pixels

Batches = Generator[dict[str, Any], None, None]


def staged(batches: Batches, device: torch.device, cuda: Any = torch.cuda) -> Batches:
    """The batches, their pictures copied to a GPU on a stream of its own; elsewhere the batches as they are.

    The copy of a batch begins as soon as the loader has it. The stream that computes waits for the copy, the host does
    not. So a GPU holds the pictures of one step more; they stay bytes until the step begins.

    Args:
        batches: closed with the result.
        device: of the run.
        cuda: makes streams, as torch.cuda does.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from batches
            return
        copies = cuda.Stream(device)
        for batch in batches:
            with cuda.stream(copies):
                moved = {key: _moved(batch[key], device) for key in PICTURES if isinstance(batch.get(key), Tensor)}
            computes = cuda.current_stream(device)
            computes.wait_stream(copies)
            for tensor in moved.values():  # its memory may be used again only after the step
                (tensor.raw if isinstance(tensor, Pixels) else tensor).record_stream(computes)
            yield {**batch, **moved}


def _moved(picture: Tensor, device: torch.device) -> Tensor:
    return picture.staged(device) if isinstance(picture, Pixels) else picture.to(device, non_blocking=True)
