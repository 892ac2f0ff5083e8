"""The records that training leaves in the log: a line now and then, and one for every step that was skipped."""

from __future__ import annotations

import math
from typing import Any

import torch

from lavis_lite import distributed
from lavis_lite.runners.loss_meter import LossMeter
from lavis_lite.runners.parts import Speed, TrainingParts
from lavis_lite.tracking.sink import Record

GIB = 2**30


def training_record(step: int, lr: float, meter: LossMeter, parts: TrainingParts, speed: Speed,
                    device: torch.device) -> Record:
    """A log line; called by all ranks together.

    Args:
        step: optimizer steps done.
        lr: base learning rate of the newest one.
        meter: losses and gradient norm since the last line; it begins anew.
        parts: of the run.
        speed: time since the last line; it begins anew.
        device: whose memory is told.
    """
    means, skipped = meter.take()
    norm = means.pop("grad_norm")
    memory = {"peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / GIB, 3)} if (
        device.type == "cuda") else {}
    return {"step": step, "epoch": parts.bounds.epoch(step), "loss": means.pop("loss"), **means, "lr": lr,
            "grad_norm": norm, "skipped_steps": skipped, "samples_seen": step * parts.order.global_batch,
            **speed.lap(), **memory}


def skipped_record(step: int, losses: list[float], parts: TrainingParts, skipped: int) -> Record:
    """What is known of a step that was skipped; called by all ranks together.

    Args:
        step: its 0-based number.
        losses: of this rank's micro-batches.
        parts: of the run.
        skipped: steps that were skipped so far, this one among them.

    Returns:
        A record with `losses`, one list of micro-batches per rank, and `samples`, the samples of the micro-batches
        whose loss is not finite, or of all if only the gradient is not.
    """
    every = distributed.all_gather_object(losses)
    return {"step": step + 1, "event": "skipped: loss or gradient was not finite", "skipped": skipped,
            "losses": every, "samples": suspects(step, every, parts)}


def suspects(step: int, losses: list[list[float]], parts: TrainingParts) -> list[str]:
    """`data set file:row` of the samples that a non-finite loss may come from.

    A step's samples are laid out as [micro-batch][rank][sample], see `RankBatches`. With run.on_bad_sample=skip some
    may have been replaced by others: bad_samples.jsonl lists them.
    """
    keys, size = parts.order(step), parts.run.batch_size_train
    blocks = {(rank, micro): (micro * len(losses) + rank) * size
              for rank, row in enumerate(losses) for micro in range(len(row))}
    bad = {place: start for place, start in blocks.items() if not math.isfinite(losses[place[0]][place[1]])}
    chosen = [key for start in sorted((bad or blocks).values()) for key in keys[start:start + size]]
    return [f"{parts.names[key.dataset]} {_row(parts.datasets[key.dataset], key.index)}" for key in chosen]


def _row(dataset: Any, index: int) -> str:
    return dataset.location(index) if hasattr(dataset, "location") else f"row {index}"
