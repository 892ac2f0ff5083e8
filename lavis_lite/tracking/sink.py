"""The contract of sinks: where a run's records go.

Records are plain dicts.

- Training: step, epoch, lr, samples_seen (since the run began), peak_memory_gib (on a GPU). Since the last record:
  loss, loss_* and grad_norm (means without skipped steps), skipped_steps, images_per_second, data_wait (share of time,
  0 to 1).
- Evaluation: step, epoch, split, and the metrics.
- A hook: step, hook (its name), and its numbers.
- A skipped step: step, event, skipped (steps in all), losses (by rank and micro-batch), samples.
- Anything else has an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]


class Sink:
    """One destination of records. Every method may stay as it is."""

    def open(self, start_step: int, total_steps: int) -> None:
        """The run begins or continues after `start_step` optimizer steps; later records of an earlier try are void."""

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

    def text(self, step: int, tag: str, text: str) -> None:
        """A text that belongs to a step, such as sampled captions."""

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """A picture that belongs to a step: float[3,H,W] from 0 to 1, on the CPU."""

    def log(self, text: str) -> None:
        """A line or a table for people."""

    def close(self) -> None:
        """The process is about to leave the run, finished or not."""


def flat_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under the tags that TensorBoard and W&B show: train/loss, val/r_mean ..."""
    group = record.get("split", record.get("hook", "train"))
    return {f"{group}/{key}": float(value) for key, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"}
