"""The contract of hooks, and what they see of a run. Nothing here needs torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lavis_lite.config.schema import Config
    from lavis_lite.models.base import BaseModel
    from lavis_lite.runners.precision import Precision
    from lavis_lite.runners.step import StepResult
    from lavis_lite.runners.train_state import TrainState
    from lavis_lite.tasks.base import BaseTask
    from lavis_lite.tracking.tracker import Tracker


@dataclass
class RunContext:
    """What hooks see of a training; the same object at every call.

    Attributes:
        config: the whole configuration; `config.run` is the run section.
        task, model: of the run; the model is the bare one, without its wrapper for several ranks.
        datasets: data set name -> split -> data set.
        run_dir: the run's folder, equal on all ranks.
        device, precision: where and in which dtype; `precision.autocast()` is the context a model runs in.
        tracker: takes records, texts and images; on ranks other than 0 it does nothing.
        rank: number of this process; 0 is the one that writes.
        train: optimizer, order of samples and schedule.
        step: optimizer steps done.
        last_step: the step that the run ends with; a stop moves it forward.
        resumed: whether the run continues from a checkpoint.
        stop_reason: why a hook wants the run to end; "": no hook does.
    """

    config: Config
    task: BaseTask
    model: BaseModel
    datasets: Mapping[str, Mapping[str, Any]]
    run_dir: Path
    device: torch.device
    precision: Precision
    tracker: Tracker
    train: TrainState = field(init=False)
    rank: int = 0
    step: int = 0
    last_step: int = 0
    resumed: bool = False
    stop_reason: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def log(self, text: str) -> None:
        """Print a line for people, on rank 0."""
        self.tracker.log(text)

    def log_scalars(self, hook: str, values: Mapping[str, float]) -> None:
        """Numbers of the present step, for the log, TensorBoard (tags `<hook>/<name>`) and W&B."""
        self.tracker.record({"step": self.step, "hook": hook, **values})

    def stop(self, reason: str) -> None:
        """Ask for a normal end of the run. It ends, saved and tested, as soon as all ranks know of it.

        That is at once after a validation, else with the next step (on a GPU the one after it).
        """
        self.stop_reason = self.stop_reason or reason


class Hook:
    """Base of all hooks: every method may stay as it is.

    A hook's constructor takes its arguments, which are keys of `run.hooks.<name>`; type hints are checked. The key
    `every` needs no argument: each hook has it. All ranks call all hooks in the same order, so collectives are allowed.
    An exception of a hook ends the run as any other.
    """

    every: int = 1
    """optimizer steps between calls of `before_step` and `after_step`: the step's number is a multiple of it"""
    name: str = ""
    """as `run.hooks` has it"""
    keeps_weights: ClassVar[bool] = False
    """whether `weights` gives a set of weights that checkpoints keep"""

    def on_start(self, run: RunContext) -> None:
        """Training is about to begin or to continue; the state of a checkpoint is loaded already."""

    def before_step(self, run: RunContext) -> None:
        """The batch of the next step is there; `run.step` steps are done."""

    def after_step(self, run: RunContext, result: StepResult) -> None:
        """A step is done and counted. Reading a tensor of `result` waits for the device."""

    def during_evaluation(self, run: RunContext) -> contextlib.AbstractContextManager[None]:
        """The context in which splits are validated or tested, for example with other weights in the model."""
        return contextlib.nullcontext()

    def after_evaluation(self, run: RunContext, split: str, scores: Mapping[str, float]) -> None:
        """A split was validated or tested; its scores are equal on all ranks."""

    def on_save(self, run: RunContext) -> None:
        """A checkpoint is about to be written."""

    def on_end(self, run: RunContext) -> None:
        """All steps are done; the test follows. Not called if an error or a signal ends the run."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the hook: plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave. Not called if the checkpoint's run did not have the hook."""

    def weights(self) -> dict[str, Tensor]:
        """Another set of weights, under the model's names: checkpoints keep it as `<hook name>.safetensors`.

        Asked if `keeps_weights`. The file gets the model's own tensors too under all names that are not in the set, so
        that it stands for `model.safetensors`.
        """
        return {}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave: after a resume, and before the best checkpoint is tested."""
