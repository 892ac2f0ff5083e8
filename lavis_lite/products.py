"""Matrix products of linear layers: by oneDNN on AMD's CPUs with AVX-512, elsewhere as torch computes them.

torch multiplies float32 matrices by MKL, which is half as fast on these CPUs. Results are those of `F.linear` up to
rounding. No weight is kept between two products, so that all of them may change. On other machines this module changes
nothing, not even the class of a layer.

oneDNN makes a kernel of 0.4 MB for each size, and keeps 1,024 of them. Texts of random lengths would fill 1 GB. So
both caches become smaller, unless the environment says how large they are.
`plain()` and `torch.backends.mkldnn.flags(enabled=False)` switch it off.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 2**21
"""multiplications of a product; smaller ones cost less by MKL than oneDNN needs to begin"""
Model = TypeVar("Model", bound=nn.Module)
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""torch's operator for linear layers by oneDNN; None: torch was built without it"""
CPU = Path("/proc/cpuinfo")
"""where Linux says who made the CPU"""
IS_AVAILABLE = (ONEDNN is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
                and CPU.exists() and "AuthenticAMD" in CPU.read_text())
KEPT = 128
"""sizes of products for which kernels are kept"""
if IS_AVAILABLE:
    for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's before it
        os.environ.setdefault(_name, str(KEPT))
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
    return _product(left.t(), right.t())


class Linear(nn.Linear):
    """A linear layer that computes by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """float[...,K] -> float[...,N]."""
        return linear(input, self.weight, self.bias)


def replace_linears(model: Model) -> Model:
    """The model itself; its layers of torch's own class compute by this module, with the same weights and names."""
    for module in model.modules() if IS_AVAILABLE else ():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def _is_fit(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN may, and should, multiply; sizes come last, since a traced program knows none."""
    return (IS_AVAILABLE and not _is_plain and not torch.compiler.is_compiling() and rows.device.type == "cpu"
            and rows.dtype is weight.dtype is torch.float32 and bool(torch.backends.mkldnn.enabled)
            and not torch.is_autocast_enabled("cpu") and rows.numel() * len(weight) >= LEAST)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = ONEDNN(rows, weight, bias, "none", [], "")
    return found


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
