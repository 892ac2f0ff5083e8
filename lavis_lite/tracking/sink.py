"""The contract of sinks: the places that a run's records go to.

Records are plain dicts. Training: {"step", "epoch", "loss", "loss_*", "lr", "images_per_second", "grad_norm"}.
Evaluation: {"step", "epoch", "split", metrics ...}. Anything else has "event".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]


class Sink:
    """One place records go to. Every method may stay as it is."""

    def open(self, start_step: int, total_steps: int) -> None:
        """The run begins, or goes on, after `start_step` optimizer steps; later records of an earlier try are void."""

    def advance(self, step: int) -> None:
        """`step` optimizer steps are done; called after every one."""

    def begin(self, title: str, total: int, done: int = 0, unit: str = "samples") -> None:
        """Work besides the steps begins, an evaluation for example: `total` units, of which `done` were done before."""

    def proceed(self, done: int) -> None:
        """So many of its units are done."""

    def end(self) -> None:
        """It is over, or left."""

    def record(self, record: Record) -> None:
        """A training, evaluation or event record."""

    def say(self, text: str) -> None:
        """A line or a table for people."""

    def close(self) -> None:
        """The process is about to leave the run, finished or not."""


def flat_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under the tags that TensorBoard and W&B show: train/loss, val/r_mean ..."""
    group = record.get("split", "train")
    return {f"{group}/{key}": float(value) for key, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"}
