"""How fast steps are and how much memory they take."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING

from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from lavis_lite.runners.step import StepResult

GIB = 2**30


@registry.register_hook("throughput")
class Throughput(Hook):
    """Logs speed and memory of rank 0, over the steps since the last such record.

    - samples_per_second: of all ranks, without the time spent on validation and saving.
    - step_seconds_median, step_seconds_max: from one step's end to the next, so that a single slow batch shows.
    - host_memory_gib: the peak so far. On a GPU also device_memory_gib and device_memory_reserved_gib.

    Args:
        every: optimizer steps between records.
    """

    def __init__(self, every: int = 20) -> None:
        self.window, self.every = every, 1
        self._seconds: list[float] = []
        self._since: float | None = None

    def before_step(self, run: RunContext) -> None:
        """The clock starts at the first batch, and again after a validation or a checkpoint."""
        if self._since is None:
            self._since = time.perf_counter()

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """Take the time; every `every` steps a record."""
        if run.device.type == "cuda" and run.step % self.window == 0:
            import torch

            torch.cuda.synchronize(run.device)  # once per record, so that kernels count for the step they belong to
        now = time.perf_counter()
        self._seconds.append(now - (self._since or now))
        self._since = now
        if run.step % self.window:
            return
        rate = len(self._seconds) * run.train.order.global_batch / max(sum(self._seconds), 1e-9)
        run.log_scalars(self.name, {"samples_per_second": round(rate, 2),
                                    "step_seconds_median": statistics.median(self._seconds),
                                    "step_seconds_max": max(self._seconds), **memory(run.device)})
        self._seconds = []

    def on_save(self, run: RunContext) -> None:
        """What follows is not training."""
        self._since = None

    def after_evaluation(self, run: RunContext, split: str, scores: object) -> None:
        """What came before was not training."""
        self._since = None


def memory(device: object) -> dict[str, float]:
    """Peaks of this process in GiB: of the host, and of a GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"host_memory_gib": round(peak / GIB, 3)}
    if getattr(device, "type", "") == "cuda":
        import torch

        found["device_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 3)  # type: ignore[arg-type]
        found["device_memory_reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / GIB, 3)  # type: ignore[arg-type]
    return found
