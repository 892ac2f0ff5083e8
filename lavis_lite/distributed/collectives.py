"""The process group, and the few collectives that the package needs.

At world size 1 nothing here costs anything: no process group is needed, no tensor is copied. All ranks enter a
collective, or none does. Inside `local()` code behaves as at world size 1 (each rank evaluates its own batches).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lavis_lite.errors import DistributedError
from lavis_lite.process.children import follow_parent, remove_stale_folders
from lavis_lite.process.exits import native_threads_started
from lavis_lite.process.launch import Launch, launch_from_environment

T = TypeVar("T")


class _State:
    local_depth = 0
    store: Any = None
    """key-value store that all ranks of this attempt share"""


def init(device: torch.device, timeout_minutes: float = 10.0, rendezvous_minutes: float = 5.0) -> Launch:
    """Join the process group that the launcher describes (gloo on CPU, NCCL on GPU); one process needs none.

    Args:
        device: decides the backend.
        timeout_minutes: of every later collective.
        rendezvous_minutes: how long to wait here for the other ranks.

    Raises:
        DistributedError: the launcher's variables make no sense, or another rank did not come.
    """
    launch = launch_from_environment()
    if launch.note:
        print(f"note: {launch.note}", flush=True)
    if launch.world_size > 1 and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            follow_parent(signal.SIGTERM)  # if torchrun is killed, its ranks save and leave
        # not at the top: builds of torch without torch.distributed have no stores
        from lavis_lite.distributed.rendezvous import Rendezvous

        store = Rendezvous(launch.rank, launch.world_size, rendezvous_minutes).meet()
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size,
                                    timeout=timedelta(minutes=timeout_minutes))
        except (dist.DistNetworkError, dist.DistStoreError, RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise DistributedError(f"rank {launch.rank} of {launch.world_size} met the others at {address}, but no "
                                   f"group could be made: {error}") from error
        native_threads_started()
        _State.store = store
    return launch


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _State.store = None


@contextlib.contextmanager
def group(device: torch.device, timeout_minutes: float = 10.0, rendezvous_minutes: float = 5.0) -> Iterator[Launch]:
    """Context manager: the process group of `init`, which takes the same arguments and raises the same errors.

    If a run fails on several ranks, the first error is the cause and the others follow from it. Later errors that pass
    through here are marked with `reported_elsewhere = True`, so that only the cause is reported.
    """
    launch = init(device, timeout_minutes, rendezvous_minutes)
    store, hosts = _State.store, launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        yield launch
    except BaseException as error:
        lost_rank = isinstance(error, RuntimeError) and peer_is_gone(error)
        final = rank_is_gone(error) if lost_rank else error
        if store is not None and not getattr(error, "same_on_all_ranks", False):
            if not _is_first_failure(store):
                final.reported_elsewhere = True  # type: ignore[attr-defined]
            shutdown()
            remove_stale_folders()  # of ranks on this host that were killed
            if hosts:  # the lost rank will not report a failure
                _wait_for_failures(store, launch.world_size - lost_rank)
        if lost_rank:
            raise final from error
        raise
    finally:
        shutdown()


_FAILED = "failed"
_PATIENCE = 2.0
"""seconds that a failing rank spends on the store"""


def _is_first_failure(store: Any) -> bool:
    """Whether no other rank has failed before this one; true if the store does not answer."""
    try:
        store.set_timeout(timedelta(seconds=_PATIENCE))
        return bool(store.add(_FAILED, 1) == 1)
    except (RuntimeError, OSError):
        return True


def _wait_for_failures(store: Any, ranks: int) -> None:
    """Keep the store open a little, so that the other ranks can report their failures to it.

    References to gloo's group keep its connections open, so ranks in the middle of a training notice later.
    """
    deadline = time.monotonic() + _PATIENCE / 4
    with contextlib.suppress(RuntimeError, OSError):
        while store.add(_FAILED, 0) < ranks and time.monotonic() < deadline:
            time.sleep(0.02)


def world_size() -> int:
    """Number of processes in collectives (1 inside `local()`)."""
    return 1 if _State.local_depth or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """Number of this process among them (0 inside `local()`)."""
    return 0 if _State.local_depth or not dist.is_initialized() else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes files and messages to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def local() -> Iterator[None]:
    """Context manager: inside it this process is alone, and collectives return their input."""
    _State.local_depth += 1
    try:
        yield
    finally:
        _State.local_depth -= 1


def peer_is_gone(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank left or did not answer in time, by gloo's and NCCL's texts."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "imed out", "NCCL")
    return dist.is_initialized() and dist.get_world_size() > 1 and any(sign in str(error) for sign in signs)


def rank_is_gone(error: BaseException, when: str = "") -> DistributedError:
    """The error that replaces a collective's own if another rank has left."""
    return DistributedError(f"another process of the run has gone or does not answer{when}; its own output has the "
                            f"reason. Start again with `--resume auto`. Here: {error}")


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def all_gather(tensor: Tensor) -> Tensor:
    """Rows of all ranks, rank 0 first, without gradient: [B, ...] -> [W*B, ...]; equal B on all ranks."""
    if world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _AllGatherGrad(torch.autograd.Function):
    """all_gather with a backward that sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start:start + ctx.rows]


def all_gather_with_grad(tensor: Tensor) -> Tensor:
    """Rows of all ranks, [B, ...] -> [W*B, ...]; gradients flow back to the rank that owns the row."""
    return tensor if world_size() == 1 else _AllGatherGrad.apply(tensor)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient; the input is not changed."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_gather_object(item: T) -> list[T]:
    """One small picklable item of every rank, rank 0 first."""
    if world_size() == 1:
        return [item]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, item)
    return parts


def broadcast_object(item: T) -> T:
    """Rank 0's item on every rank."""
    if world_size() == 1:
        return item
    box: list[Any] = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class _Exchange(torch.autograd.Function):
    """all_to_all of rows with uneven splits; backward sends the gradients back to their ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        ctx.send, ctx.receive = send, receive
        return _all_to_all(rows, send, receive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(grads[0].contiguous(), ctx.receive, ctx.send), None, None


def _all_to_all(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
    out = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), receive, send)
    return out


def fetch_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows of the global batch by their global index; only these rows cross ranks.

    Args:
        rows: float[B, ...], this rank's part of the global batch (equal B on all ranks); gradients flow back.
        indices: int64[M], global indices in [0, W*B): owner = index // B.

    Returns:
        float[M, ...] in the order of `indices`.
    """
    if world_size() == 1:
        return rows.index_select(0, indices)
    me, batch = rank(), rows.shape[0]
    requests = all_gather_object(indices.tolist())  # a few hundred integers; the only host sync of a step
    outgoing = [[index - me * batch for index in request if index // batch == me] for request in requests]
    incoming = [[position for position, index in enumerate(requests[me]) if index // batch == owner]
                for owner in range(world_size())]
    to_send, order = (torch.tensor(sum(parts, []), dtype=torch.long, device=rows.device)
                      for parts in (outgoing, incoming))
    received = _Exchange.apply(rows.index_select(0, to_send), [len(part) for part in outgoing],
                               [len(part) for part in incoming])
    return received.index_select(0, torch.argsort(order))
