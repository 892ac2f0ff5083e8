"""Counts what one turn of work does: host reads, bytes per collective, FLOPs; and a machine's peak FLOP/s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lavis_lite.bench.timing import timed
from lavis_lite.products import ONEDNN, linear

GPU_PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "A6000": 155e12, "L40S": 362e12}
"""dense FLOP/s in bf16 by a word in the device's name (vendors' nominal figures)"""
READS = {getattr(Tensor, name) for name in ("item", "tolist", "cpu", "nonzero", "masked_select", "equal", "__bool__",
                                            "__int__", "__float__", "__index__")} | {
    torch.nonzero, torch.masked_select, torch.equal}
"""calls that wait for the device if the tensor is there"""
_ATEN = torch.ops.aten
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu:
        lambda query, key, value, *more, **named: sdpa_flop_count(query.shape, key.shape, value.shape),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, query, key, value, *more, **named: sdpa_backward_flop_count(
            grad.shape, query.shape, key.shape, value.shape),
}
FORMULAS: dict[Any, Callable[..., int]] = {
    **_CPU_ATTENTION, **flop_registry, ONEDNN: lambda rows, weight, *more, **named: 2 * rows.numel() * len(weight)}
"""operation -> its FLOPs; torch's table lacks kernels of CPUs"""


@dataclass(frozen=True)
class Counts:
    """What one turn did.

    Attributes:
        flops: of matrix products and attention, forward and backward.
        host_reads: values that the host waited for. On a CPU: calls that would wait if their tensor were on a GPU, so
            reads of tensors that stay on the host count too.
        collective_bytes: collective -> bytes of its result on this rank.
    """

    flops: float
    host_reads: int
    collective_bytes: dict[str, int]


def count(turn: Callable[[], object], device: torch.device) -> Counts:
    """Do a turn, and count."""
    with HostReads(device) as reads, Operations() as operations:
        turn()
    return Counts(operations.flops, reads.number, dict(operations.bytes))


class HostReads(TorchFunctionMode):
    """Counts calls of READS on tensors of a device, and rows that a mask chooses there; `number` has the sum."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device_type, self.number = device.type, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then call."""
        if (func in READS or _chooses_by_mask(func, args)) and args[0].device.type == self.device_type:
            self.number += 1
        return func(*args, **(kwargs or {}))


def _chooses_by_mask(func: Any, args: Any) -> bool:
    """Whether it is `tensor[mask]`: how many rows a mask chooses is known after it was computed."""
    return func is Tensor.__getitem__ and any(isinstance(leaf, Tensor) and leaf.dtype is torch.bool
                                              for leaf in tree_leaves(args[1]))


class Operations(TorchDispatchMode):
    """Counts the bytes of collectives by name, DDP's gradients among them, and FLOPs by torch's formulas.

    torch's own `FlopCounterMode` fails if a forward pass computes gradients itself, as the output layers of language
    models do here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call and count."""
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            sizes = [sum(leaf.nbytes for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)) for arg in args]
            self.bytes[func.overloadpacket.__name__.strip("_")] += max(sizes, default=0)
        elif func.overloadpacket in FORMULAS:
            self.flops += FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def peak_flops(device: torch.device, name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s that MFU is a share of: nominal on a known GPU, else None; on a CPU measured, fp32's if `dtype` is slower.

    Args:
        device: where the work is done.
        name: of the machine.
        dtype: of matrix products.
    """
    if device.type != "cpu":
        return next((peak for word, peak in GPU_PEAKS.items() if word in name), None)
    return max(matmul_flops(device, each) for each in {torch.float32, dtype})


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of large matrices, the best of four; of processor time and per thread on a CPU."""
    on_cpu = device.type == "cpu"
    size, kind, threads = (1024, "cpu", torch.get_num_threads()) if on_cpu else (8192, "wall", 1)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [getattr(timed(lambda: linear(left, right), device), kind) / threads for _ in range(4)]
    return 2.0 * size ** 3 / float(min(seconds))
