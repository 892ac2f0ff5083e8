"""What a forward and backward pass allocates and computes, seen operation by operation; no tensor needs content.

The meta device differs from a GPU in three things, for which there are stand-ins. Attention takes the kernel that
keeps no table of weights. Autocast changes types. A value that a model reads (is a mask all true?) is False.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

LOW: tuple[Any, ...] = (F.linear, F.conv1d, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm,
                        torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm)
"""what autocast computes in 16 bits on a GPU"""
HIGH: tuple[Any, ...] = (F.layer_norm, F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, torch.softmax,
                         Tensor.softmax, torch.pow, Tensor.pow, torch.rsqrt, Tensor.rsqrt, torch.logsumexp)
"""and what in 32"""


@dataclass(frozen=True)
class StepCount:
    """What one forward and backward pass takes, in bytes and floating-point operations.

    Attributes:
        activations: most bytes alive at once besides weights and gradients.
        with_gradients: most bytes alive at once of activations and gradients together.
        flops: of both passes; a multiplication and an addition are two.
        forward: of the forward pass.
    """

    activations: int
    with_gradients: int
    flops: int
    forward: int = 0


def count_step(model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype = torch.float32) -> StepCount:
    """Run `loss_of` and its backward pass, and count.

    Args:
        model: on the meta device; its weights and buffers are not counted as activations.
        loss_of: gives the loss, float[].
        dtype: of autocast; float32: no autocast.
    """
    live = _Live([*model.parameters(), *model.buffers()])
    trained = [value for value in model.parameters() if value.requires_grad]
    handles = [value.register_post_accumulate_grad_hook(live.take_gradient) for value in trained]
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(live)
        # meta tensors have no autocast: that of the CPU does nothing to them, and tells the stand-in whether it is on
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32))
        stack.enter_context(_AsOnGPU(dtype))
        loss = loss_of()
        forward = live.flops
        # what `loss.backward()` calls; that would switch the stand-ins off, and blocks that run again need them
        Variable._execution_engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (),
                                                allow_unreachable=True, accumulate_grad=True)
    return StepCount(live.most_activations, live.most, live.flops, forward)


def count_forward(work: Callable[[], object], dtype: torch.dtype = torch.float32) -> int:
    """Floating-point operations of some work without gradients, counted as `count_step` does."""
    live = _Live([])
    with torch.no_grad(), live, torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32), _AsOnGPU(dtype):
        work()
    return live.flops


class _Live(TorchDispatchMode):
    """Keeps account of the storages that are alive, and of operations.

    Args:
        resident: tensors that were there before, and do not count.
    """

    def __init__(self, resident: list[Any]) -> None:
        super().__init__()
        self.resident = {value.untyped_storage()._cdata for value in resident}
        self.sizes: dict[int, int] = {}
        self.gradients: set[int] = set()
        self.alive = self.in_gradients = self.most = self.most_activations = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operation and count what it returned; a value that is read is False."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.resident or key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.alive += storage.nbytes()
        weakref.finalize(storage, self._drop, key).atexit = False
        self._look()

    def _drop(self, key: int) -> None:
        size = self.sizes.pop(key, 0)
        self.alive -= size
        if key in self.gradients:
            self.gradients.discard(key)
            self.in_gradients -= size

    def _look(self) -> None:
        self.most = max(self.most, self.alive)
        self.most_activations = max(self.most_activations, self.alive - self.in_gradients)

    def take_gradient(self, parameter: Tensor) -> None:
        """A gradient is complete: it is not an activation any more."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self.sizes and key not in self.gradients:
            self.gradients.add(key)
            self.in_gradients += self.sizes[key]


class _AsOnGPU(TorchFunctionMode):
    """Attention and autocast as on a GPU; see the module.

    Args:
        dtype: of autocast, while that is on.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Change types as autocast does, and attention to its fused kernel."""
        given = dict(kwargs or {})
        if (func in LOW or func in HIGH) and torch.is_autocast_enabled("cpu"):
            cast = self._low if func in LOW else _high
            args, given = tree_map_only(Tensor, cast, args), tree_map_only(Tensor, cast, given)
        if func is F.scaled_dot_product_attention and args[0].is_meta and args[0].ndim == 4:
            return fused_attention(*args, **given)
        return func(*args, **given)

    def _low(self, tensor: Tensor) -> Tensor:
        """Autocast keeps its copies of weights for the whole forward pass."""
        if tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = tensor, tensor.to(self.dtype)
        return self._casts[id(tensor)][1]


def _high(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """As `F.scaled_dot_product_attention`, by the kernel of GPUs that keeps one number per query and head.

    Args:
        query: float[B,H,L,E].
        key: float[B,H,S,E], or fewer heads with `enable_gqa`.
        value: float[B,H,S,E'].
        attn_mask: bool or float, broadcast to [B,H,L,S].
        dropout_p, is_causal, scale, enable_gqa: as there.

    Returns:
        float[B,H,L,E'].
    """
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    keeps = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keeps, dropout_p, is_causal, scale=scale)[0]
    return found
