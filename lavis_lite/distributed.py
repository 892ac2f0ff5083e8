"""One process, torchrun or SLURM: who am I, and the few collectives the package needs.

Everything here is free at world size 1: no process group is needed, no tensor is copied. Collectives are entered by
all ranks or by none; `local()` makes a stretch of code behave as world size 1 (evaluation of whole batches per rank).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lavis_lite.errors import DistributedError

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """What the launcher said: this process among all."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "single process"


class _State:
    local_depth = 0


def launch_from_environment(env: dict[str, str] | None = None) -> Launch:
    """Read torchrun's or SLURM's variables.

    Raises:
        DistributedError: WORLD_SIZE > 1 is set but rank or master address are not; or a value is not a number.
    """
    env = dict(os.environ if env is None else env)
    if int(env.get("WORLD_SIZE") or 1) > 1 or "RANK" in env:
        return _torchrun(env)
    if int(env.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in env:
        return _slurm(env)
    return Launch()


def _torchrun(env: dict[str, str]) -> Launch:
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise DistributedError(
            f"the environment has WORLD_SIZE={env.get('WORLD_SIZE')} but not {', '.join(missing)}. Start several "
            "processes with `torchrun --nproc_per_node=N train.py ...`, or unset WORLD_SIZE to run one.")
    rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    if not 0 <= rank < world_size:
        raise DistributedError(f"RANK={rank} is not below WORLD_SIZE={world_size}.")
    return Launch(rank, world_size, int(env.get("LOCAL_RANK", rank)), "torchrun")


def _slurm(env: dict[str, str]) -> Launch:
    """SLURM's srun: rank and size from its variables, the first host of the node list as master."""
    launch = Launch(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0)), "SLURM")
    hosts = env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    if not env.get("MASTER_ADDR"):
        if not hosts:
            raise DistributedError("SLURM set SLURM_NTASKS > 1 but neither SLURM_JOB_NODELIST nor MASTER_ADDR is set; "
                                   "export MASTER_ADDR=<host of rank 0> before srun.")
        os.environ["MASTER_ADDR"] = first_host(hosts)
    # jobs that share a node must not share a port: derive it from the job id
    os.environ.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))
    return launch


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: "gpu[003-007,9],cpu1" -> "gpu003"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise DistributedError(f"cannot read SLURM's node list {nodelist!r}; export MASTER_ADDR=<host of rank 0>.")
    return match.group(1) + (match.group(2) or "")


def init(device: torch.device, timeout_minutes: float = 10.0) -> Launch:
    """Join the process group the launcher describes (gloo on CPU, NCCL on GPU); nothing to do for one process."""
    launch = launch_from_environment()
    if launch.world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, rank=launch.rank, world_size=launch.world_size,
                                    timeout=timedelta(minutes=timeout_minutes))
        except (dist.DistNetworkError, dist.DistStoreError, ValueError) as fault:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise DistributedError(f"rank {launch.rank} of {launch.world_size} could not meet the others at {where}: "
                                   f"{fault}") from fault
    return launch


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that take part in collectives right now (1 inside `local()`)."""
    return 1 if _State.local_depth or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """This process among them (0 inside `local()`)."""
    return 0 if _State.local_depth or not dist.is_initialized() else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def local() -> Iterator[None]:
    """Within it this process is alone: collectives return their input."""
    _State.local_depth += 1
    try:
        yield
    finally:
        _State.local_depth -= 1


def peer_is_gone(fault: RuntimeError) -> bool:
    """Whether a collective failed because another rank left or did not answer in time (gloo and NCCL word it so)."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "imed out", "NCCL")
    return dist.is_initialized() and dist.get_world_size() > 1 and any(sign in str(fault) for sign in signs)


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
    """all_gather whose backward sums every rank's gradient of this rank's rows."""

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
    """As `all_gather`, but gradients flow back to the rank that owns the row."""
    return tensor if world_size() == 1 else _AllGatherGrad.apply(tensor)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, without gradient; the input is not changed."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_gather_object(item: T) -> list[T]:
    """One picklable item of every rank, rank 0 first. For small things."""
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
    """all_to_all of rows with uneven splits; backward sends the gradients home the same way."""

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


def fetch_rows(rows: Tensor, wanted: Tensor) -> Tensor:
    """Rows of the global batch by their global index; only these rows cross ranks.

    Args:
        rows: float[B, ...], this rank's part of the global batch (equal B on all ranks); gradients flow back.
        wanted: int64[M], global indices in [0, W*B): owner = index // B.

    Returns:
        float[M, ...] in the order of `wanted`.
    """
    if world_size() == 1:
        return rows.index_select(0, wanted)
    size, me, batch = world_size(), rank(), rows.shape[0]
    counts = all_gather_object(wanted.tolist())  # a few hundred integers; the one host sync of a step
    mine = [[index - me * batch for index in asked if index // batch == me] for asked in counts]
    by_owner = [[place for place, index in enumerate(counts[me]) if index // batch == owner] for owner in range(size)]
    to_send = torch.tensor([row for asked in mine for row in asked], dtype=torch.long, device=rows.device)
    received = _Exchange.apply(rows.index_select(0, to_send), [len(a) for a in mine], [len(a) for a in by_owner])
    order = torch.tensor([place for places in by_owner for place in places], dtype=torch.long, device=rows.device)
    return received.index_select(0, torch.argsort(order))
