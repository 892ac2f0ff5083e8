"""The contract of tasks: what to compute per batch and how to score it. No loops, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import split_losses
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.submission import Submission

Row = dict[str, Any]


class ProgressHandle:
    """What a task may use during a long `score`: a bar, a store of finished parts, and whether to stop early.

    This one shows nothing, keeps nothing and never stops; during an evaluation the evaluator replaces it.
    """

    run_dir: Path | None = None
    """folder of the run that is evaluated; None: not known"""
    step: int = 0
    """optimizer steps of the weights that are evaluated"""

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """A stretch of work of `total` units begins, counted over all ranks."""

    def advance(self, count: int = 1) -> None:
        """This rank has finished `count` more units."""

    def load(self, key: str) -> Any:
        """What `save` kept on any rank before the evaluation was stopped; None: nothing."""
        return None

    def save(self, key: str, value: Any) -> None:
        """Keep a finished part, so that a resumed evaluation need not compute it again; plain values only."""

    def stop_requested(self) -> int:
        """Exit code of a pending signal on this rank; 0: none. Leave the loop then, and call `stop_if_requested`."""
        return 0

    def stop_if_requested(self) -> None:
        """Leave the evaluation on all ranks if any rank was asked to stop. Collective."""


class BaseTask:
    """One objective: a training step, a prediction per batch, a score over predictions.

    `config_class` (a dataclass derived from RunConfig) owns the task's keys of the `run:` section. The runner loops,
    moves batches to the device, enters autocast and writes files. Evaluation gives whole batches to ranks (batch j to
    rank j % W), and runs `predict` inside `distributed.local()`.
    """

    config_class: ClassVar[type[RunConfig]] = RunConfig
    gathers_rows: ClassVar[bool] = False
    """whether rows are small: the runner then brings all ranks' rows together, sorted by id, before `score`, and keeps
    those of plain values until the results are written, so that a killed evaluation does not predict them again"""
    model_methods: ClassVar[tuple[str, ...]] = ()
    """methods that a model must have to be evaluated"""
    progress: ProgressHandle = ProgressHandle()
    """for `score`"""

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg

    @classmethod
    def from_config(cls, config: Config) -> BaseTask:
        """The task of a run; by default made of its `run:` section alone."""
        return cls(config.run)

    def before_training(self, model: BaseModel, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Called once before the first step, or the first after a resume; nothing to do by default.

        Args:
            model: on its device, with its weights.
            datasets: data set name -> split -> data set.
        """

    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """What the model is given of a training batch: the batch itself, or its texts in the task's prompt."""
        return samples

    def train_step(self, model: Any, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """One micro-batch -> (loss float[], detached loss parts by name, `loss` among them).

        `model` is called as it comes (it may be wrapped by DistributedDataParallel). It returns a `ModelOutput`, or
        any mapping with "loss".

        Raises:
            ContractError: the model returned no loss.
        """
        return split_losses(model(self.training_samples(samples)))

    def loss_terms(self, model: BaseModel, samples: dict[str, Any]) -> dict[str, int]:
        """Number of terms that the losses of `train_step` average, see `BaseModel.loss_terms`; `model` is unwrapped."""
        return model.loss_terms(self.training_samples(samples))

    def check_model(self, model: BaseModel) -> None:
        """Called before an evaluation.

        Raises:
            ConfigError: the model lacks a method that the task calls.
        """
        missing = [name for name in self.model_methods if not callable(getattr(model, name, None))]
        if missing:
            raise ConfigError(
                f"run.task={self.cfg.task} cannot evaluate {type(model).__name__}, which has no {', '.join(missing)}. "
                f"Choose another task, or a model that has {'it' if len(missing) == 1 else 'them'} (`python -m "
                "lavis_lite zoo`).")

    def predict(self, model: BaseModel, samples: dict[str, Any]) -> list[Row]:
        """One evaluation batch -> one row per sample with its `id`; values are plain or CPU tensors."""
        raise NotImplementedError(f"{type(self).__name__} must define predict")

    def score(self, model: BaseModel, rows: list[Row], dataset: Any, split: str) -> dict[str, float]:
        """This rank's rows -> metrics, equal on all ranks; called by all ranks together, collectives are allowed.

        With `gathers_rows` they are the rows of all ranks.

        `agg_metrics` is the number by which the best checkpoint is chosen: higher is better.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score")

    def before_evaluation(self, dataset: Any, split: str) -> None:
        """Called on every rank before a split's first `predict`; nothing to do by default."""

    def takes(self, dataset: Any) -> bool:
        """Whether the task can evaluate a data set. Of several, those it cannot are for training only."""
        return True

    def evaluated(self, dataset: Any) -> Any:
        """The data set whose samples `predict` gets; another one than the split's own where a control is asked for."""
        return dataset

    def predictions(self, rows: list[Row], dataset: Any) -> list[Row] | Submission | None:
        """All ranks' rows -> what the predictions file holds, one row per id; None: no such file.

        Asked only of tasks that gather their rows. A `Submission` is a file for a benchmark's server.
        """
        return None

    def report(self, rows: list[Row], dataset: Any, split: str) -> Sequence[ReportSample] | None:
        """What a person may look at of each sample; None: nothing.

        Asked after `score`, of rank 0 alone and with the same rows: no collectives here.
        """
        return None

    def summary(self, scores: dict[str, float]) -> str:
        """A line for people at the end of a run, from what `score` returned."""
        return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
