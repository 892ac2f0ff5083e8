"""One optimizer step: micro-batches, gradients, agreement between ranks, update.

"Step" always means an optimizer step: `accum_grad_iters` micro-batches on every rank. All randomness inside a
micro-batch (dropout, sampling in a model) is a pure function of (seed, step, micro-batch, rank), so a resumed run
needs no saved generator state and repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import LavisLiteError
from lavis_lite.runners import optim
from lavis_lite.runners.precision import Precision
from lavis_lite.runners.schedules import LRSchedule
from lavis_lite.runners.sharding import leave_shards_alone

PATIENCE = 5
"""Non-finite steps in a row after which a run stops."""
PATIENCE_FP16 = PATIENCE + 16
"""With fp16 the loss scale starts at 2**16 and may have to be halved that often."""


class DivergedError(LavisLiteError):
    """Loss or gradients were not finite for several steps in a row; the weights are those before them."""

    same_on_all_ranks = True


def seed_position(*position: int | str) -> None:
    """Seed torch, numpy and Python from a position such as (seed, step, micro-batch, rank)."""
    text = "/".join(str(part) for part in position)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def to_device(item: Any, device: torch.device) -> Any:
    """Tensors of a nested batch on the device (asynchronously where they are pinned); everything else as it is."""
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        return {key: to_device(value, device) for key, value in item.items()}
    if isinstance(item, list | tuple) and any(isinstance(part, Tensor | Mapping | list | tuple) for part in item):
        return type(item)(to_device(part, device) for part in item)
    return item


def wrap_for_ranks(model: nn.Module, device: torch.device, find_unused_parameters: bool) -> nn.Module:
    """DistributedDataParallel where there are several ranks, the model itself where there is one.

    Gradients live in DDP's buckets, which saves one copy of them. static_graph stays off: when the first backward of
    a process runs under no_sync, as it does with accumulation, that mode leaves ranks with different gradients.
    """
    if distributed.world_size() == 1:
        return model
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # new name
    settings: dict[str, Any] = {buffers: False}
    leave_shards_alone(model)
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        find_unused_parameters=find_unused_parameters, **settings)


@dataclass
class StepResult:
    """What a step found, still on the device and of this rank only: reading it costs a sync, so only log steps do."""

    step: int
    lr: float
    losses: dict[str, Tensor]
    """mean over this rank's micro-batches, float[] each"""
    grad_norm: Tensor
    """before clipping, float[]; equal on all ranks"""

    def mean_over_ranks(self) -> dict[str, float]:
        """The losses averaged over ranks, as numbers; called by all ranks together."""
        names = sorted(self.losses)
        values = torch.stack([self.losses[name].float() for name in names])
        mean = distributed.all_reduce_sum(values) / distributed.world_size()
        return dict(zip(names, mean.tolist(), strict=True))


class _Votes:
    """Per step, the maximum over ranks of (step was not finite, exit code of a signal that wants us to leave).

    On a GPU a vote is read one step late, when it is there already, so that the host never waits for the device. All
    ranks read the same votes in the same step, so they act in unison.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag = 1 if device.type == "cuda" else 0
        self._pending: list[tuple[int, Tensor, Any]] = []

    def cast(self, step: int, bad: Tensor, wish: int) -> Tensor:
        """Vote; the result, float[2], is on the device already when the update needs it."""
        vote = torch.stack([bad.float(), torch.full_like(bad, wish, dtype=torch.float32)])
        if distributed.world_size() > 1:
            dist.all_reduce(vote, dist.ReduceOp.MAX)
        event = None
        if vote.is_cuda:
            host = vote.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            host = vote
        self._pending.append((step, host, event))
        return vote

    def read(self, flush: bool) -> list[tuple[int, bool, int]]:
        """(step, bad, wish) of the votes that are due; `flush` waits for all."""
        due = []
        while len(self._pending) > (0 if flush else self.lag):
            step, host, event = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            bad, wish = host.tolist()
            due.append((step, bad > 0, int(wish)))
        return due


class Stepper:
    """Runs optimizer steps and keeps count of those that were skipped.

    Args:
        task: gives loss and loss parts per micro-batch.
        model: as `wrap_for_ranks` made it.
        optimizer: with the groups of `optim.parameter_groups`.
        schedule: base learning rate by step.
        cfg: the `run:` section.
        device, precision: where and in which dtype.
    """

    def __init__(self, task: Any, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRSchedule,
                 cfg: RunConfig, device: torch.device, precision: Precision) -> None:
        self.task, self.model, self.optimizer, self.schedule = task, model, optimizer, schedule
        self.cfg, self.device, self.precision = cfg, device, precision
        self.scaler = precision.scaler()
        self.parameters = optim.trained_parameters(optimizer)
        self.patience = PATIENCE_FP16 if self.scaler.is_enabled() else PATIENCE
        self.skipped = self.in_a_row = 0
        self._votes = _Votes(device)

    def rehearse(self, batch: dict[str, Any]) -> None:
        """A forward and backward that leave no trace, before a process's first step, where more than two ranks train.

        After its first backward DDP sorts gradients into other buckets, and the place in a bucket decides in which
        order ranks are summed. Without this a resumed run's first step would differ from the uninterrupted run's same
        step in the last bit. (The sum over two ranks has only one order.)
        """
        if distributed.world_size() <= 2:
            return
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        seed_position(self.cfg.seed, "rehearsal", distributed.rank())
        with self.precision.autocast():
            loss, _ = self.task.train_step(self.model, to_device(batch, self.device))
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def run(self, step: int, micro_batches: Sequence[dict[str, Any]],
            wish: Callable[[], int] = lambda: 0) -> StepResult:
        """Do the 0-based step `step`.

        Where loss or gradients are not finite on any rank, every rank leaves weights and moments as they are.

        Args:
            step: its number.
            micro_batches: `accum_grad_iters` batches of this rank.
            wish: exit code of a pending signal on this rank, 0 if there is none; asked as late as ranks can agree.
        """
        lr = self.schedule.lr_at(step)
        optim.set_lr(self.optimizer, lr)
        losses = self._gradients(step, micro_batches)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        bad = ~(torch.isfinite(losses["loss"]) & torch.isfinite(norm))
        vote = self._votes.cast(step, bad, wish())
        self._update(vote[0])
        return StepResult(step, lr, losses, norm)

    def _gradients(self, step: int, micro_batches: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Accumulate gradients; ranks exchange them once, with the last micro-batch."""
        self.optimizer.zero_grad(set_to_none=True)
        count = len(micro_batches)
        totals: dict[str, Tensor] = {}
        for micro, batch in enumerate(micro_batches):
            seed_position(self.cfg.seed, step, micro, distributed.rank())
            samples = to_device(batch, self.device)
            with self._no_sync(micro < count - 1):
                with self.precision.autocast():
                    loss, parts = self.task.train_step(self.model, samples)
                self.scaler.scale(loss / count).backward()
            for name, value in {**parts, "loss": loss}.items():
                share = value.detach() / count
                totals[name] = totals[name] + share if name in totals else share
        return totals

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _clip(self) -> Tensor:
        """Global gradient norm before clipping, float[]."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if self.cfg.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.cfg.max_grad_norm, norm)
        return norm

    def _update(self, bad: Tensor) -> None:
        """AdamW; its fused kernels leave everything as it is where `found_inf` is 1, without the host looking."""
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()

    def agree(self, flush: bool = False) -> tuple[list[int], int]:
        """What all ranks decided: 0-based steps that were skipped, and the exit code to leave with (0: go on).

        Raises:
            DivergedError: too many non-finite steps in a row; on all ranks at once.
        """
        skipped, leave = [], 0
        for step, bad, wish in self._votes.read(flush):
            leave = max(leave, wish)
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self.skipped += 1
                skipped.append(step)
            if self.in_a_row >= self.patience:
                raise DivergedError(
                    f"loss or gradients were not finite in {self.in_a_row} steps in a row, up to step {step + 1}; none "
                    "of them changed the weights. Try a lower run.init_lr, run.max_grad_norm=1.0 or "
                    "run.amp_dtype=fp32; bad_samples.jsonl and the data of these steps may tell more.")
        return skipped, leave

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors for a checkpoint."""
        return {"optimizer": optim.optimizer_state(self.optimizer), "scaler": self.scaler.state_dict(),
                "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        optim.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
