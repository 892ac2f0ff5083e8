"""Our names of a recorded model's tensors."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file

from lavis_lite.checkpoints import from_lavis


@functools.cache
def our_names(folder: Path) -> dict[str, str]:
    """LAVIS' name -> ours, for every tensor of a folder's weights.

    All are renamed together, because single names do not tell which vision encoder they are of; each is filled with its
    own number, by which it is known again.
    """
    weights = load_file(folder / "weights.safetensors")
    numbered = {name: torch.full_like(value, number) for number, (name, value) in enumerate(weights.items())
                if value.is_floating_point() and value.numel()}
    names = list(weights)
    return {names[int(value.flatten()[0])]: name for name, value in from_lavis(numbered).tensors.items()}
