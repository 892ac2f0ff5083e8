"""The hooks of every run: the account of unusable samples, and the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lavis_lite import distributed
from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.loading.policy import BadSampleAccount
from lavis_lite.device import precision_notes
from lavis_lite.models.base import BaseModel
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.runners.hooks.base import Hook, RunContext
from lavis_lite.runners.schedules import length_notes, warmup_notes
from lavis_lite.tracking.sinks import Record
from lavis_lite.tracking.tracker import parameter_table

if TYPE_CHECKING:
    from lavis_lite.runners.step import StepResult
    from lavis_lite.runners.train_state import TrainState


# --- unusable samples ------------------------------------------------------------------------------------------------
class BadSamples(BadSampleAccount, Hook):
    """The account of unusable samples, which the ranks share on the steps that are logged and before a checkpoint."""

    name = "bad_samples"

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Share on the steps that are logged."""
        if run.train.schedule.logs(run.step, run.config.run):
            self.share(step=run.step)

    def on_save(self, run: RunContext) -> None:
        """The counts of a checkpoint are those of all ranks."""
        self.share(step=run.step)


# --- the log ---------------------------------------------------------------------------------------------------------
GIB = 2**30


class TrainingLog(Hook):
    """The hook that logs the steps; every training has it."""

    name = "training_log"

    _cut: Mapping[str, CutTexts] | None = None
    """texts of all ranks that were cut, as logged last"""

    def on_start(self, run: RunContext) -> None:
        """What trains, on how many samples, and in which precision."""
        train, cfg = run.train, run.config.run
        run.log(parameter_table(run.model.count_parameters()))
        begin = f"resuming after step {run.step} of" if run.resumed else "training"
        precision = str(run.precision.dtype).removeprefix("torch.")
        run.log(f"{begin} {run.last_step} steps of {train.order.global_batch} images ({distributed.world_size()} "
                f"processes x {cfg.batch_size_train} x {cfg.accum_grad_iters}) on {run.device.type} in "
                f"{precision}; log: {run.run_dir / 'log.jsonl'}")
        for note in (*precision_notes(cfg, run.device), *length_notes(cfg, train.schedule.total),
                     *warmup_notes(train.lr_schedule), *accumulation_notes(
                         train.micro_batch, cfg.accum_grad_iters, run.model.in_batch_negatives)):
            run.log(note)

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Move the bar; a record on every `run.log_freq`-th step.

        The first one also names texts that were cut, and parameters without a gradient.
        """
        run.tracker.advance(run.step)
        if run.train.schedule.logs(run.step, run.config.run):
            run.tracker.record(training_record(run, result.lr))
            if self._cut is None:
                self._log_cut_texts(run)
                if unreached := run.train.train_step.unreached:
                    run.log(f"note: {unreached} in the first step. Unless other batches use them, they do not train: "
                            "use them in the loss, or freeze them.")

    def on_end(self, run: RunContext) -> None:
        """Name the texts that were cut, if there are more by now."""
        self._log_cut_texts(run)

    def _log_cut_texts(self, run: RunContext) -> None:
        counts = all_cut_texts(run.model)
        for what, count in counts.items():
            if count.cut and (self._cut or {}).get(what, CutTexts()).cut != count.cut:
                run.log(f"{count.cut:,} of {count.read:,} {what}; the longest has {count.longest} tokens")
        self._cut = counts


def accumulation_notes(micro_batch: int, accum: int, in_batch_negatives: bool) -> list[str]:
    """A note if the loss compares the samples of a micro-batch, and a step has several micro-batches."""
    if accum == 1 or not in_batch_negatives:
        return []
    return [f"note: ITC and ITM compare the samples of one micro-batch, {micro_batch} (run.batch_size_train x "
            f"processes), not those of a step, {micro_batch * accum}. More micro-batches mean fewer in-batch negatives "
            "and another loss than run.accum_grad_iters=1 has."]


def all_cut_texts(model: BaseModel) -> dict[str, CutTexts]:
    """Texts of all ranks that were longer than a setting allows. Collective."""
    summed: dict[str, CutTexts] = {}
    for part in distributed.all_gather_object(model.cut_texts()):
        for what, count in part.items():
            summed[what] = summed.get(what, CutTexts()).plus(count)
    return summed


def training_record(run: RunContext, lr: float) -> Record:
    """A log line: means since the last one, which begin anew. Collective.

    Args:
        run: the training.
        lr: base learning rate of the newest step.
    """
    train, step = run.train, run.step
    means, skipped = train.train_step.losses.take()
    norm = means.pop("grad_norm")
    memory = {"peak_memory_gib": round(torch.cuda.max_memory_allocated(run.device) / GIB, 3)} if (
        run.device.type == "cuda") else {}
    return {"step": step, "epoch": train.schedule.epoch(step), "loss": means.pop("loss"), **means, "lr": lr,
            "grad_norm": norm, "skipped_steps": skipped, "samples_seen": step * train.order.global_batch,
            **train.speed.lap(), **memory}


def skipped_record(step: int, losses: list[float], train: TrainState) -> Record:
    """What is known of a step that was skipped. Collective.

    Args:
        step: its 0-based number.
        losses: of this rank's micro-batches.
        train: of the run.

    Returns:
        A record with `losses`, one list of micro-batches per rank, and `samples`: those of micro-batches
        with a non-finite loss, or all samples if only the gradient is not finite.
    """
    every = distributed.all_gather_object(losses)
    return {"step": step + 1, "event": "skipped: loss or gradient was not finite",
            "skipped": train.train_step.skipped, "losses": every, "samples": suspects(step, every, train)}


def suspects(step: int, losses: list[list[float]], train: TrainState) -> list[str]:
    """`data set file:row` of the samples that a non-finite loss may come from.

    A step's samples are laid out as [micro-batch][rank][sample], see `RankBatches`. With run.on_bad_sample=skip some
    may have been replaced by others: bad_samples.jsonl lists them.
    """
    keys, size = train.order(step), train.run.batch_size_train
    blocks = {(rank, micro): (micro * len(losses) + rank) * size
              for rank, row in enumerate(losses) for micro in range(len(row))}
    bad = {block: start for block, start in blocks.items() if not math.isfinite(losses[block[0]][block[1]])}
    chosen = [key for start in sorted((bad or blocks).values()) for key in keys[start:start + size]]
    return [f"{train.names[key.dataset]} {location_of(train.datasets[key.dataset], key.index)}" for key in chosen]
