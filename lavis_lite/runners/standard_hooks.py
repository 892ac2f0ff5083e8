"""The hooks of every run: the account of unusable samples, and the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_lite import distributed
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import location_of
from lavis_lite.datasets.loading.policy import BadRecord, BadSampleLog
from lavis_lite.errors import DataError, TextTooLongError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.plain_text import CutTexts
from lavis_lite.runners.hooks.base import Hook, RunContext
from lavis_lite.tracking.sinks import Record
from lavis_lite.tracking.tracker import parameter_table

if TYPE_CHECKING:
    from lavis_lite.runners.step import StepResult
    from lavis_lite.runners.train_state import TrainState


# --- unusable samples ------------------------------------------------------------------------------------------------
class BadSamples(Hook):
    """The hook that takes the records out of batches as they come, and shares them between ranks now and then.

    Args:
        cfg: `on_bad_sample` and `max_bad_fraction` are used; under `raise` there is nothing to share.
        run_dir: `bad_samples.jsonl` is written there.
    """

    name = "bad_samples"

    def __init__(self, cfg: RunConfig, run_dir: Path) -> None:
        self.active = cfg.on_bad_sample == "skip"
        self.log = BadSampleLog(Path(run_dir) / "bad_samples.jsonl", cfg.max_bad_fraction)
        self.newest: tuple[list[BadRecord], int] = [], 0
        """records and samples of the batch taken last"""
        self._records: list[BadRecord] = []
        self._samples = 0

    def take(self, batch: dict[str, Any], samples: int | None = None) -> bool:
        """Remove the records from a batch; False if nothing usable is left of it.

        Args:
            batch: as the loader gave it; changed in place.
            samples: samples that were read; by default the rows that remain and the records.
        """
        records = batch.pop("bad_samples", [])
        rows = max((len(value) for value in batch.values() if isinstance(value, Sized)), default=0)
        self.add(records, rows + len(records) if samples is None else samples)
        return bool(batch)

    def add(self, records: list[BadRecord], samples: int) -> None:
        """Count samples that were read, and the records among them; they are also `newest`."""
        self.newest = records, samples
        self._records += records
        self._samples += samples

    def too_long(self, dataset: object, tokens: Mapping[int, int], error: TextTooLongError) -> None:
        """Count samples of the batch taken last that have texts too long for the model.

        Args:
            dataset: knows where its rows come from.
            tokens: row of the data set -> tokens of its text.
            error: the model's, about them.

        Raises:
            DataError: such samples are not to be left out.
        """
        where = {row: location_of(dataset, row) for row in tokens}
        if not self.active:
            raise DataError(f"{next(iter(where.values()))}: {error} Or set run.on_bad_sample=skip to leave such "
                            "samples out (they are counted and listed).") from error
        records: list[BadRecord] = [{"file": path.rpartition(":")[0], "row": path,
                                     "reason": f"has a text of {tokens[row]} tokens, too long for the language model"}
                                    for row, path in where.items()]
        self._records += records
        self.newest = [*self.newest[0], *records], self.newest[1]

    def forget(self) -> None:
        """Drop what was taken since the last `share` (an evaluation that is done again later)."""
        self._records, self._samples = [], 0

    def share(self, **extra: Any) -> None:
        """Bring all ranks' records together; called by all ranks at once.

        Args:
            extra: fields for every line, such as step=12.

        Raises:
            DataError: too large a share of all samples was unusable; raised on all ranks.
        """
        if not self.active:
            return
        gathered = distributed.all_gather_object((self._records, self._samples))
        self.forget()
        records = [record for part, _ in gathered for record in part]
        samples = sum(count for _, count in gathered)
        if distributed.is_main():
            self.log.add(records, samples, **extra)
        else:  # counts alike, so that all ranks judge alike; the file is rank 0's
            self.log.read += samples
            self.log.bad += len(records)
        self.log.check()

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Share on the steps that are logged."""
        if run.train.schedule.logs(run.step, run.config.run):
            self.share(step=run.step)

    def on_save(self, run: RunContext) -> None:
        """The counts of a checkpoint are those of all ranks."""
        self.share(step=run.step)

    def state(self) -> dict[str, int]:
        """Counts, for a checkpoint."""
        return self.log.state_dict()

    def load_state(self, state: Mapping[str, int]) -> None:
        """Continue from saved counts; rank 0 drops the lines written after them."""
        if distributed.is_main():
            self.log.load_state_dict(dict(state))
        else:
            self.log.bad, self.log.read = state["bad"], state["read"]


# --- the log ---------------------------------------------------------------------------------------------------------
GIB = 2**30


class TrainingLog(Hook):
    """The hook that logs the steps; every training has it."""

    name = "training_log"

    def __init__(self) -> None:
        self._cut: Mapping[str, CutTexts] | None = None
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
        for note in accumulation_notes(train.micro_batch, cfg.accum_grad_iters, run.model.in_batch_negatives):
            run.log(note)

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Move the bar; a record on every `run.log_freq`-th step. The first one also names texts that were cut."""
        run.tracker.advance(run.step)
        if run.train.schedule.logs(run.step, run.config.run):
            run.tracker.record(training_record(run, result.lr))
            if self._cut is None:
                self._log_cut_texts(run)

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
