"""A trace of a few steps, for chrome://tracing, Perfetto or TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lavis_lite.errors import ConfigError
from lavis_lite.io import atomic
from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext

if TYPE_CHECKING:
    from lavis_lite.runners.step import StepResult


@registry.register_hook("profiler")
class Profiler(Hook):
    """Records steps `first` to `last` with torch.profiler, and writes `profile/` in the run folder.

    Written are `trace_rank0.json` and `operators_rank0.txt`, the operators by their own time. A trace slows its steps.

    Args:
        first, last: numbers of steps, both included; step 1 is the first of a run, and is slow.
        all_ranks: every rank writes its own files.
        memory: record allocations too.
        stacks: record the Python stack of every operator.
    """

    def __init__(self, first: int = 10, last: int = 12, all_ranks: bool = False, memory: bool = False,
                 stacks: bool = False) -> None:
        if not 1 <= first <= last:
            raise ConfigError(f"run.hooks.profiler: first={first} and last={last} must be steps, first before last.")
        self.first, self.last, self.all_ranks = first, last, all_ranks
        self.memory, self.stacks = memory, stacks
        self._profile: Any = None

    def before_step(self, run: RunContext) -> None:
        """Begin with step `first`, or later if the run was resumed within them."""
        if self._profile is not None or not self.first <= run.step + 1 <= self.last:
            return
        if self.all_ranks or run.is_main:
            from torch.profiler import ProfilerActivity, profile

            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (run.device.type == "cuda")
            self._profile = profile(activities=kinds, profile_memory=self.memory, with_stack=self.stacks,
                                    record_shapes=True)
            self._profile.__enter__()

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """End after step `last`."""
        if run.step >= self.last:
            self._write(run)

    def on_end(self, run: RunContext) -> None:
        """End with a run that is shorter."""
        self._write(run)

    def _write(self, run: RunContext) -> None:
        if self._profile is None:
            return
        done, self._profile = self._profile, None
        if run.device.type == "cuda":
            import torch

            torch.cuda.synchronize(run.device)  # kernels of the last step belong to the trace
        done.__exit__(None, None, None)
        folder = run.run_dir / "profile"
        folder.mkdir(exist_ok=True)
        trace = folder / f"trace_rank{run.rank}.json"
        done.export_chrome_trace(str(trace))
        device = "cuda" if run.device.type == "cuda" else "cpu"
        table = done.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=40)
        atomic.write_text(folder / f"operators_rank{run.rank}.txt", table)
        run.log(f"profile of steps {self.first} to {run.step}: {trace} (open it in https://ui.perfetto.dev)")
