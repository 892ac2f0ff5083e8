"""Several ranks train one model: how gradients are exchanged, and what is computed meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.runners.placement import ignore_in_ddp

Batch = dict[str, Any]


def wrap_for_ranks(model: nn.Module, device: torch.device, run: RunConfig) -> nn.Module:
    """DistributedDataParallel if there are several ranks, the model itself if there is one.

    Gradients live in DDP's buckets, which saves one copy of them. static_graph stays off: ranks would have different
    gradients if the first backward of a process runs under no_sync, as it does with accumulation.

    Args:
        model: on its device.
        device: of this rank.
        run: `ddp_bucket_mb`, `gradient_compression` and `find_unused_parameters` are used.
    """
    if distributed.world_size() == 1:
        return model
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # new name
    settings: dict[str, Any] = {buffers: False, "bucket_cap_mb": run.ddp_bucket_mb}
    ignore_in_ddp(model)
    wrapped = DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        find_unused_parameters=run.find_unused_parameters, **settings)
    if run.gradient_compression == "bf16":
        wrapped.register_comm_hook(None, lambda state, bucket: _mean_in_bf16(bucket))  # DDP reads annotations
    return wrapped


def _mean_in_bf16(bucket: Any) -> Any:
    """DDP's mean of a bucket over ranks; it travels in bf16. The hook of torch refuses gloo."""
    sent = bucket.buffer().div(distributed.world_size()).to(torch.bfloat16)
    return dist.all_reduce(sent, async_op=True).get_future().then(
        lambda done: bucket.buffer().copy_(done.value()[0]))


class Ahead(Iterator[Batch]):
    """Micro-batches; the next one can be fetched, and a part of it computed, before its turn.

    Args:
        batches: of this rank.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._next: Batch | None = None

    def __next__(self) -> Batch:
        """The next micro-batch."""
        found, self._next = self._next, None
        return next(self._batches) if found is None else found

    @property
    def is_known(self) -> bool:
        """Whether the next micro-batch was fetched."""
        return self._next is not None

    def fetch(self) -> None:
        """Wait for the next micro-batch, unless the last one was taken."""
        self._next = next(self._batches, None) if self._next is None else self._next

    def prepare(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Replace the images of the next micro-batch, if it has any, with what `encode` makes of them."""
        if self._next is not None and isinstance(image := self._next.get("image"), Tensor):
            self._next = {**self._next, "image": encode(image)}


def during_exchange(loss: Tensor, work: Callable[[], None]) -> None:
    """Call `work` as soon as the backward pass of `loss` is computed, before DDP waits for gradients of other ranks.

    autograd makes its last calls in the order of their requests. This request comes as the backward pass begins. DDP's,
    for the call that waits, comes with the last bucket of gradients. On a GPU the kernels of `work` precede the wait in
    the same stream, so they need no other one.
    """
    engine: Any = Variable._execution_engine
    loss.register_hook(lambda grad: engine.queue_callback(work))
