"""The contract of tasks: what to compute per batch and how to score it. No loops, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from torch import Tensor, nn

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.contracts import lacking, names_with, need
from lavis_lite.errors import ConfigError, ContractError, DataError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import split_losses
from lavis_lite.registry import registry
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.submission import Submission

if TYPE_CHECKING:  # defaults of type variables: part of `typing` from Python 3.13 on
    from typing_extensions import TypeVar

    M = TypeVar("M", default=BaseModel)
    D = TypeVar("D", default=Any)
else:
    from typing import TypeVar

    M, D = TypeVar("M"), TypeVar("D")

Row = dict[str, Any]
NOT_OF_SAMPLES = {"bad_samples", "uniform"}
"""keys that a batch also has if none of its samples is usable"""


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


class BaseTask(Generic[M, D]):
    """One objective: a training step, a prediction per batch, a score over predictions.

    `config_class` (a dataclass derived from RunConfig) owns the task's keys of the `run:` section. The runner loops,
    moves batches to the device, enters autocast and writes files. Evaluation gives whole batches to ranks (batch j to
    rank j % W), and runs `predict` inside `distributed.local()`.

    `needs_model` and `needs_data` state what an evaluation needs; they are compared with the model's class and the
    builders' data sets before anything is made. `BaseTask[Captioner, Captions]` states the same for a type checker: the
    types of `model` and `dataset` in the methods below. A bare `BaseTask` takes a `BaseModel` and any data set.
    """

    config_class: ClassVar[type[RunConfig]] = RunConfig
    needs_model: ClassVar[type | None] = None
    """protocol of `lavis_lite.models.protocols` (or of yours) that an evaluated model must have; None: any model"""
    needs_data: ClassVar[type | None] = None
    """protocol of `lavis_lite.datasets.protocols` (or of yours) that a data set must have; None: any data set"""
    model_methods: ClassVar[tuple[str, ...]] = ()
    """methods that a model must have besides, by name"""
    gathers_rows: ClassVar[bool] = False
    """whether rows are small: the runner then brings all ranks' rows together, sorted by id, before `score`, and keeps
    those of plain values until the results are written, so that a killed evaluation does not predict them again"""
    progress: ProgressHandle = ProgressHandle()
    """for `score`"""

    def __init__(self, cfg: RunConfig) -> None:
        for key, message in cfg.task_errors():
            raise ConfigError(f"run.{key}: {message}")
        self.cfg = cfg

    @classmethod
    def from_config(cls, config: Config) -> BaseTask[Any, Any]:
        """The task of a run; by default made of its `run:` section alone."""
        return cls(config.run)

    def before_training(self, model: BaseModel, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Called once before the first step, or the first after a resume; nothing to do by default.

        Args:
            model: on its device, with its weights.
            datasets: data set name -> split -> data set.
        """

    # training -------------------------------------------------------------------------------------------------------
    def training_samples(self, samples: dict[str, Any]) -> dict[str, Any]:
        """What the model is given of a training batch: the batch itself, or its texts in the task's prompt."""
        return samples

    def train_step(self, model: nn.Module, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
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

    # what an evaluation needs -----------------------------------------------------------------------------------------
    def evaluators(self) -> Sequence[BaseTask[Any, Any]]:
        """The tasks that evaluate in this one's name, the most particular first; by default itself."""
        return [self]

    def lacking_methods(self, model: object) -> list[str]:
        """Methods that a model (its class, or an instance) lacks to be evaluated; empty where it can be."""
        methods = [name for name in self.model_methods if not callable(getattr(model, name, None))]
        return methods + [name for need in self.model_needs(model) for name in lacking(model, need)]

    def model_needs(self, model: object) -> Sequence[type]:
        """Protocols that a model (its class, or an instance) must have, given the run's settings."""
        return [self.needs_model] if self.needs_model is not None else []

    def takes(self, dataset: object) -> bool:
        """Whether the task can evaluate a data set, or its class. Of several, those it cannot are for training only."""
        return self.needs_data is None or not lacking(dataset, self.needs_data, attributes=False)

    def check_model(self, model: object) -> None:
        """Called before an evaluation, with the model's class before it is built, or with a model.

        Raises:
            ConfigError: the model lacks a method that the task calls.
        """
        if missing := self.lacking_methods(model):
            name = model.__name__ if isinstance(model, type) else type(model).__name__
            raise ConfigError(
                f"run.task={self.cfg.task} cannot evaluate {name}, which has no {', '.join(missing)}. Choose another "
                f"task, or a model that has {'it' if len(missing) == 1 else 'them'} (`python -m lavis_lite zoo`).")

    # evaluation -----------------------------------------------------------------------------------------------------
    def before_evaluation(self, dataset: D, split: str) -> None:
        """Called on every rank before a split's first `predict`.

        Raises:
            DataError: the data set is of another kind than `needs_data`.
            ContractError: it has the methods of that protocol, but not its attributes.
        """
        if not self.takes(dataset):
            raise DataError(f"split {split!r}: {self.refusal(dataset)}")
        if self.needs_data is not None:
            need(dataset, self.needs_data, f"split {split!r}: run.task={self.cfg.task}")

    def refusal(self, dataset: object) -> str:
        """Why the task cannot evaluate a data set (or its class) that it does not take, and which builders it takes."""
        cls = dataset if isinstance(dataset, type) else type(dataset)
        asked = {need.__name__: lacking(dataset, need, attributes=False) for task in self.evaluators()
                 if (need := task.needs_data) is not None}
        lost = " or ".join(f"{name} (no {', '.join(names)})" for name, names in asked.items())
        known = dict.fromkeys(
            name for task in self.evaluators() if task.needs_data is not None
            for name in names_with(registry.builder, task.needs_data, lambda builder: builder.evaluation_class()))
        return (f"run.task={self.cfg.task} cannot evaluate {cls.__name__}, which is no {lost}. Builders of such data "
                f"sets: {', '.join(known) or 'none'}. Take one of them, or remove the split from run.valid_splits and "
                "run.test_splits.")

    def evaluated(self, dataset: D) -> Any:
        """The data set that gives `predict` its samples; another one than the split's own if a control is set."""
        return dataset

    def predict(self, model: M, samples: dict[str, Any]) -> list[Row]:
        """One evaluation batch -> one row per sample with its `id`; values are plain or CPU tensors."""
        raise NotImplementedError(f"{type(self).__name__} must define predict")

    def score(self, model: M, rows: list[Row], dataset: D, split: str) -> dict[str, float]:
        """This rank's rows -> metrics, equal on all ranks; called by all ranks together, collectives are allowed.

        With `gathers_rows` they are the rows of all ranks.

        `agg_metrics` is the number by which the best checkpoint is chosen: higher is better.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score")

    def predictions(self, rows: list[Row], dataset: D) -> list[Row] | Submission | None:
        """All ranks' rows -> what the predictions file holds, one row per id; None: no such file.

        Asked only of tasks that gather their rows. A `Submission` is a file for a benchmark's server.
        """
        return None

    def report(self, rows: list[Row], dataset: D, split: str) -> Sequence[ReportSample] | None:
        """What a person may look at of each sample; None: nothing.

        Asked after `score`, of rank 0 alone and with the same rows: no collectives here.
        """
        return None

    def summary(self, scores: dict[str, float]) -> str:
        """A line for people at the end of a run, from what `score` returned."""
        return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())

    def has_samples(self, samples: dict[str, Any], *keys: str) -> bool:
        """Whether a batch has usable samples; they must have the keys.

        Raises:
            ContractError: they lack one.
        """
        if samples.keys() <= NOT_OF_SAMPLES:
            return False
        if lost := [key for key in keys if key not in samples]:
            given = ", ".join(sorted(samples.keys() - NOT_OF_SAMPLES))
            raise ContractError(f"run.task={self.cfg.task}: evaluation samples need {', '.join(map(repr, lost))}; "
                                f"those of the data set have {given}. Let the data set's `sample` return "
                                f"{'it' if len(lost) == 1 else 'them'}.")
        return True
