"""Matrix products of linear layers: on a CPU with AVX-512 by oneDNN, elsewhere as torch computes them.

torch multiplies float32 matrices by MKL, which leaves half of such a CPU unused unless Intel made it. Results are those
of `F.linear` up to rounding. Nothing is kept between two products: weights stay where they are, and may change.
`plain()` and `torch.backends.mkldnn.flags(enabled=False)` switch it off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 2**21
"""multiplications of a product; smaller ones cost less by MKL than oneDNN needs to begin"""
Model = TypeVar("Model", bound=nn.Module)
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""torch's operator for linear layers by oneDNN; None: torch was built without it"""
IS_AVAILABLE = ONEDNN is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
_is_plain = False


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within it all products are torch's own."""
    global _is_plain
    before, _is_plain = _is_plain, True
    try:
        yield
    finally:
        _is_plain = before


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, with gradients of any order: float[...,K], float[N,K], float[N] -> float[...,N]."""
    if not _is_fit(rows, weight):
        return F.linear(rows, weight, bias)
    if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
        found: Tensor = _Linear.apply(rows, weight, bias)
        return found
    return _product(rows, weight, bias)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the rows' outer products, a weight's gradient: float[T,N], float[T,K] -> float[N,K]."""
    if torch.is_grad_enabled() or not _is_fit(left.t(), right.t()):
        return left.t() @ right
    found: Tensor = ONEDNN(_rounded(left).t(), _rounded(right).t(), None, "none", [], "")
    return found


class Linear(nn.Linear):
    """A linear layer that computes by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """float[...,K] -> float[...,N]."""
        return linear(input, self.weight, self.bias)


def replace_linears(model: Model) -> Model:
    """The model itself; its layers of torch's own class compute by this module, with the same weights and names."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def _is_fit(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN may, and should, multiply; sizes come last, since a traced program knows none."""
    return (IS_AVAILABLE and not _is_plain and not torch.compiler.is_compiling() and rows.device.type == "cpu"
            and rows.dtype is weight.dtype is torch.float32 and bool(torch.backends.mkldnn.enabled)
            and not torch.is_autocast_enabled("cpu") and rows.numel() * len(weight) >= LEAST)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """float[...,K] -> float[...,N]; of a rounded number of rows, the last of them zeros."""
    flat = rows.flatten(0, -2)
    found: Tensor = ONEDNN(_rounded(flat), weight, bias, "none", [], "")
    return found[:len(flat)].unflatten(0, rows.shape[:-1])


def _rounded(rows: Tensor) -> Tensor:
    """float[T,K] with zeros behind: at most 3% more rows, so that few numbers of rows occur.

    oneDNN makes and keeps a kernel for each, which takes 2 ms and 0.4 MB.
    """
    step = 2 ** max(len(rows).bit_length() - 6, 0)
    lacking = -len(rows) % step
    return F.pad(rows, (0, 0, 0, lacking)) if lacking else rows


class _Linear(torch.autograd.Function):
    """The product with gradients; its backward pass is made of such products too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Keep what a gradient needs: the rows of a frozen weight are not."""
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """float[...,N] -> float[...,K], float[N,K], float[N]."""
        (slope,), (rows, weight) = outputs, ctx.saved_tensors
        flat = slope.flatten(0, -2)
        of_rows = None if weight is None else linear(slope, weight.t())
        of_weight = None if rows is None else outer(flat, rows.flatten(0, -2))
        return of_rows, of_weight, flat.sum(0) if ctx.needs_input_grad[2] else None
