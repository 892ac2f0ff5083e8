"""Several processes: how they meet, and the few collectives that the package needs.

At world size 1 nothing here costs anything: no process group is needed, no tensor is copied. All ranks enter a
collective, or none does. Inside `local()` code behaves as at world size 1 (each rank evaluates its own batches).

Tensors of which every rank holds a part (DTensor) are gathered, cut like another one, and seen as the part alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavis_lite.errors import DistributedError
from lavis_lite.moved import lazy_names

if TYPE_CHECKING:
    from lavis_lite.distributed.process_group import group as group
    from lavis_lite.distributed.process_group import init as init
    from lavis_lite.distributed.process_group import shutdown as shutdown

T = TypeVar("T")
# renamed in torch 2.13
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _State:
    local_depth = 0


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
    everyone = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    _gather_into(everyone, tensor.detach().contiguous())
    return everyone


class _AllGatherGrad(torch.autograd.Function):
    """all_gather with a backward that sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        own = grads[0].new_empty((ctx.rows, *grads[0].shape[1:]))
        _reduce_scatter(own, grads[0].contiguous())
        return own


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


def global_transpose(rows: Tensor) -> Tensor:
    """This rank's rows of the transpose of a matrix that all ranks have together: float[B,N] -> float[B,N], N = W*B.

    A rank sends B x B numbers to each other one; gradients go back the same way.
    """
    if world_size() == 1:
        return rows.T
    size = len(rows)
    blocks = rows.unflatten(1, (-1, size)).transpose(0, 1).flatten(0, 1)                  # float[W*B,B], by rank
    equal = [size] * world_size()
    received: Tensor = _Exchange.apply(blocks, equal, equal)
    return received.T


@dataclass(frozen=True)
class RowPlan:
    """Which rows every rank sends and receives so that each gets what it requested (`plan_rows`).

    to_send: int64[S], rows of this rank that any rank requested, by requesting rank.
    order: int64[M], index of each requested row among the received ones.
    send, receive: rows that go to and come from each rank.
    numbers: what `plan_rows` was asked to read besides.
    """

    to_send: Tensor
    order: Tensor
    send: list[int]
    receive: list[int]
    numbers: list[int]

    def fetch(self, rows: Tensor) -> Tensor:
        """Rows of the global batch in the requested order; only these cross ranks.

        Args:
            rows: float[B, ...], this rank's part of the global batch; gradients flow back.

        Returns:
            float[M, ...].
        """
        if world_size() == 1:
            return rows.index_select(0, self.order)
        received = _Exchange.apply(rows.index_select(0, self.to_send), self.send, self.receive)
        return received.index_select(0, self.order)


def plan_rows(indices: Tensor, batch: int, read: Tensor | None = None) -> RowPlan:
    """Tell every rank which rows this one needs. Collective; the host waits for the device once.

    Args:
        indices: int64[M], global indices in [0, W*B): owner = index // B. Equal M on all ranks.
        batch: B, rows of each rank.
        read: int64[K], numbers of this rank that the host needs too; they come with the same read.
    """
    extra = indices.new_empty(0) if read is None else read
    if world_size() == 1:
        return RowPlan(indices, indices, [], [], extra.tolist())
    requests = all_gather(indices)                                                        # int64[W*M]
    mine = requests // batch == rank()
    owner = indices // batch
    incoming = torch.zeros(world_size(), dtype=torch.long, device=indices.device)
    incoming = incoming.scatter_add(0, owner, torch.ones_like(owner))
    outgoing = mine.view(world_size(), -1).sum(1)
    numbers = torch.cat([outgoing, incoming, extra]).tolist()
    send, receive, extras = (numbers[:world_size()], numbers[world_size():2 * world_size()],
                             numbers[2 * world_size():])
    # a stable sort puts the requested rows first; nonzero() would make the host wait once more
    first = torch.argsort((~mine).to(torch.uint8), stable=True)[:sum(send)]
    return RowPlan(requests[first] - rank() * batch, torch.argsort(torch.argsort(owner, stable=True)), send, receive,
                   extras)


# tensors of which every rank holds a part (DTensor); a whole tensor goes through unchanged --------------------------
def is_sharded(tensor: Any) -> bool:
    """Whether this rank has only a part of it."""
    return hasattr(tensor, "full_tensor")


def has_shards(module: nn.Module) -> bool:
    """Whether ranks share a parameter of the module now; not while it is gathered."""
    return any(map(is_sharded, module.parameters()))


def local_part(tensor: Tensor) -> Tensor:
    """The part of this rank, in the same memory."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def gather_shards(tensor: Tensor) -> Tensor:
    """All of it, on the host of rank 0; other ranks, which write no file, get an empty tensor. Collective.

    One after another, so that no GPU ever holds a whole model.
    """
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if is_main() else whole.new_empty(0, device="cpu")


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a whole tensor, if the ranks share `other` of the same shape. No communication."""
    if not is_sharded(other) or is_sharded(tensor) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor.detach().to(other.device), other.device_mesh, other.placements, src_data_rank=None)


# models call collectives, and a model alone joins no group
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(("group", "init", "shutdown"), __name__ + ".process_group"))
