"""One optimizer step: micro-batches, gradients, agreement between ranks, update.

"Step" always means an optimizer step: `accum_grad_iters` micro-batches on every rank. All randomness inside a
micro-batch (dropout, sampling in a model) is a pure function of (seed, step, micro-batch, rank). So a resumed run
needs no saved generator state, and repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.device import Precision, seed_position, to_device
from lavis_lite.errors import CheckpointError, ContractError
from lavis_lite.models.plain_text import uncounted
from lavis_lite.runners import optim
from lavis_lite.runners.outcome import PATIENCE, Asked, DivergedError, LossMeter, SkipCounter, Votes
from lavis_lite.runners.ranks import Ahead, during_exchange
from lavis_lite.runners.schedules import LRSchedule

__all__ = ["PATIENCE", "DivergedError", "StepResult", "TrainStep"]


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


class Verdict(NamedTuple):
    """What all ranks decided together."""

    skipped: list[int]
    """0-based steps that changed nothing"""
    exit_code: int
    """to leave with; 0: none"""
    asked: Asked
    """what a hook of some rank requested"""


class TrainStep:
    """Runs optimizer steps and counts those that were skipped.

    Args:
        task: gives loss and loss parts per micro-batch.
        model: as `ranks.wrap_for_ranks` made it.
        optimizer: as `optim.build_optimizer` made it.
        schedule: base learning rate by step.
        cfg: the `run:` section.
        device, precision: where and in which dtype.

    Attributes:
        losses: means since the last log line.
        unreached: a clause on the trained parameters without a gradient in the first step; None: before it.
        on_skip: called for every skipped step with its 0-based number and the losses of this rank's micro-batches. All
            ranks call it together, before too many such steps stop the run.
    """

    def __init__(self, task: Any, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRSchedule,
                 cfg: RunConfig, device: torch.device, precision: Precision) -> None:
        self.task, self.model, self.optimizer, self.schedule = task, model, optimizer, schedule
        self.cfg, self.device, self.precision = cfg, device, precision
        self.scaler = precision.scaler()
        self.parameters = optim.trained_parameters(optimizer)
        self.losses = LossMeter(device)
        self.unreached: str | None = None
        self.on_skip: Callable[[int, list[float]], None] = lambda step, losses: None
        self._skips = SkipCounter(cfg.max_skipped_share, self.scaler.is_enabled())
        self._votes = Votes(device)
        self._unread: dict[int, list[Tensor]] = {}

    @property
    def skipped(self) -> int:
        """Steps that were skipped since the run began."""
        return self._skips.skipped

    def warm_up_ddp(self, batch: dict[str, Any]) -> None:
        """A forward and backward that leave no trace, before a process's first step, where more than two ranks train.

        After its first backward DDP sorts gradients into other buckets, and the position in a bucket decides in which
        order ranks are summed. Without this a resumed run's first step would differ from the uninterrupted run's same
        step in the last bit. (The sum over two ranks has only one order.)
        """
        if distributed.world_size() <= 2:
            return
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        seed_position(self.cfg.seed, "rehearsal", distributed.rank())
        with self.precision.autocast(), uncounted(*self._bare_model.cut_texts().values()):
            loss, _ = self.task.train_step(self.model, to_device(batch, self.device))
        loss.backward()
        self._note_unreached()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def run(self, step: int, micro_batches: Sequence[dict[str, Any]], exit_code: Callable[[], int] = lambda: 0,
            asked: Asked = Asked.NOTHING, ahead: Ahead | None = None) -> StepResult:
        """Do the 0-based step `step`.

        Where loss or gradients are not finite on any rank, every rank leaves weights and moments as they are.

        Args:
            step: its number.
            micro_batches: `accum_grad_iters` batches of this rank.
            exit_code: of a pending signal on this rank; 0: no signal. Called as late as ranks can agree.
            asked: what hooks on this rank ask for.
            ahead: the coming micro-batches. If the next one was fetched, frozen parts see its images while ranks
                exchange gradients.

        Raises:
            ContractError: in the first step, DDP has parameters without a gradient and is not set up for them.
        """
        lr = self.schedule.lr_at(step)
        optim.set_lr(self.optimizer, lr)
        losses = self._gradients(step, micro_batches, ahead)
        if self.unreached is None:
            self._note_unreached()
        self.scaler.unscale_(self.optimizer)
        norm = optim.gradient_norm(self.parameters, self.cfg.max_grad_norm)
        bad = ~(torch.isfinite(losses["loss"]) & torch.isfinite(norm))
        vote = self._votes.cast(step, bad, exit_code(), asked)
        self._update(vote[0])
        self.losses.add({**losses, "grad_norm": norm}, vote[0])
        return StepResult(step, lr, losses, norm)

    def _gradients(self, step: int, micro_batches: Sequence[dict[str, Any]],
                   ahead: Ahead | None = None) -> dict[str, Tensor]:
        """Accumulate gradients; ranks exchange them once, with the last micro-batch."""
        self.optimizer.zero_grad(set_to_none=True)
        count = len(micro_batches)
        totals: dict[str, Tensor] = {}
        each: list[Tensor] = []
        for micro, batch in enumerate(self._weighted(step, micro_batches)):
            seed_position(self.cfg.seed, step, micro, distributed.rank())
            samples = {**to_device(batch, self.device), **self._position(step, micro, count)}
            with self._no_sync(micro < count - 1):
                with self.precision.autocast():
                    loss, parts = self.task.train_step(self.model, samples)
                if ahead is not None and ahead.is_known and micro == count - 1:
                    during_exchange(loss, partial(self._encode, ahead))
                self.scaler.scale(loss / count).backward()
            each.append(loss.detach())
            for name, value in {**parts, "loss": loss}.items():
                share = value.detach() / count
                totals[name] = totals[name] + share if name in totals else share
        self._unread[step] = each
        return totals

    def _note_unreached(self) -> None:
        """Note parameters without a gradient; DDP fails on them unless it looks for them in every step."""
        self.unreached = optim.unreached_note(self.optimizer)
        if self.unreached and isinstance(self.model, DistributedDataParallel) and not self.cfg.find_unused_parameters:
            raise ContractError(f"{self.unreached}. Use them in the loss, or freeze them. If other batches use them, "
                                "set run.find_unused_parameters=true: several processes need it then.")

    def _position(self, step: int, micro: int, count: int) -> dict[str, int]:
        """Where the training is, under the keys of LAVIS' loop: its (inner) epochs, counted in micro-batches."""
        epoch, inside = divmod(step, self.schedule.steps_per_epoch)
        return {"epoch": epoch, "num_iters_per_epoch": self.schedule.steps_per_epoch * count,
                "iters": inside * count + micro}

    def _encode(self, ahead: Ahead) -> None:
        """Let frozen parts see the images of the next micro-batch; they draw no random numbers."""
        with torch.no_grad(), self.precision.autocast():
            ahead.prepare(lambda image: self._bare_model.encode_ahead(to_device(image, self.device)))

    @property
    def _bare_model(self) -> Any:
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def _weighted(self, step: int, micro_batches: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The micro-batches, each with its `loss_weights`: its share of the step's terms, times their number.

        The mean over micro-batches of a mean over tokens is not the mean over the step's tokens, because micro-batches
        differ in tokens. So the terms of all of them, on all ranks, are counted before the first forward pass.
        """
        if len(micro_batches) == 1:
            return micro_batches
        counts = [self._count_terms(step, micro, batch) for micro, batch in enumerate(micro_batches)]
        names = sorted(counts[0])
        if not names:
            return micro_batches
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        table = torch.tensor([[row[name] for name in names] for row in counts], dtype=dtype)
        table = distributed.all_reduce_sum(table.to(self.device, non_blocking=True))
        weights = len(counts) * table / table.sum(0).clamp(min=1)
        return [{**batch, "loss_weights": dict(zip(names, row, strict=True))}
                for batch, row in zip(micro_batches, weights, strict=True)]

    def _count_terms(self, step: int, micro: int, batch: dict[str, Any]) -> dict[str, int]:
        seed_position(self.cfg.seed, step, micro, distributed.rank())
        return self.task.loss_terms(self._bare_model, batch)

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _update(self, bad: Tensor) -> None:
        """The optimizer's step, unless `bad` is above 0: then weights and moments stay as they are.

        Fused kernels of Adam look at `bad` on the device. Before any other optimizer the host looks, and waits for it.
        """
        if optim.skips_on_device(self.optimizer):
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(bad):
            self.optimizer.step()
        self.scaler.update()

    def agree(self, flush: bool = False) -> Verdict:
        """What all ranks decided since the last call; `flush` waits for the newest step.

        Raises:
            DivergedError: too many non-finite steps; on all ranks at once.
        """
        votes = self._votes.read(flush)
        for vote in votes:
            losses = self._unread.pop(vote.step)
            self._skips.count(vote.step, vote.bad)
            if vote.bad:
                self.on_skip(vote.step, [float(loss) for loss in losses])
                self._skips.check(vote.step)
        return Verdict([vote.step for vote in votes if vote.bad], max((vote.exit_code for vote in votes), default=0),
                       max((vote.asked for vote in votes), default=Asked.NOTHING))

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors for a checkpoint; called by all ranks together."""
        return {"optimizer": optim.optimizer_state(self.optimizer), "optimizer_name": self.cfg.optimizer.lower(),
                "scaler": self.scaler.state_dict(), "losses": self.losses.state(), **self._skips.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: the state is of another optimizer, of one with other arguments, or of other parameters.
        """
        before, now = state.get("optimizer_name", "adamw"), self.cfg.optimizer.lower()
        if before != now:
            raise CheckpointError(f"the checkpoint has the state of run.optimizer={before}, and this run has {now}. "
                                  f"Resume with run.optimizer={before}, or start a new run with model.pretrained set "
                                  "to the checkpoint.")
        optim.check_state(state["optimizer"], self.cfg)
        optim.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._skips.load_state(state)
        if "losses" in state:  # absent in checkpoints of versions that logged single steps
            self.losses.load_state(state["losses"])
