"""Tensors of which every rank holds a part (DTensor): made whole, cut like another one, and seen as the part alone.

A whole tensor goes through all three unchanged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lavis_lite.distributed.collectives import is_main


def is_sharded(tensor: Any) -> bool:
    """Whether this rank has only a part of it."""
    return hasattr(tensor, "full_tensor")


def has_shards(module: nn.Module) -> bool:
    """Whether ranks share a parameter of the module now; not while it is gathered."""
    return any(map(is_sharded, module.parameters()))


def local(tensor: Tensor) -> Tensor:
    """The part of this rank, in the same memory."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def gather(tensor: Tensor) -> Tensor:
    """All of it, on the host of rank 0; other ranks, which write no file, get an empty tensor. Collective.

    One after another, so that no GPU ever holds a whole model.
    """
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if is_main() else whole.new_empty(0, device="cpu")


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a whole tensor, if the ranks share `other` of the same shape. No communication."""
    if not is_sharded(other) or is_sharded(tensor) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.detach().to(other.device), other.device_mesh, other.placements, src_data_rank=None)
