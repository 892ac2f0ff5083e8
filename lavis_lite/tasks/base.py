"""The contract of tasks: what to compute per batch and how to score it, and what a task needs.

No loops, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from torch import Tensor, nn

from lavis_lite.config.schema import Config, RunConfig
from lavis_lite.errors import ConfigError, ContractError, DataError, UndefinedMethodError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import split_losses
from lavis_lite.registry import lacking, names_with, need, registry
from lavis_lite.report.sample import ReportSample
from lavis_lite.tasks.config import Submission

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
    """Progress of a long `score`: a bar, a store of finished parts, and requests to stop early.

    This one shows nothing, keeps nothing and never stops; during an evaluation the evaluator replaces it.
    """

    run_dir: Path | None = None
    """folder of the run that is evaluated; None: not known"""
    step: int = 0
    """optimizer steps of the weights that are evaluated"""

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Begin work of `total` units, counted over all ranks."""

    def advance(self, count: int = 1) -> None:
        """This rank has finished `count` more units."""

    def load(self, key: str) -> Any:
        """What `save` kept on any rank before the evaluation was stopped; None: nothing."""
        return None

    def save(self, key: str, value: Any) -> None:
        """Keep a finished part, so that a resumed evaluation need not compute it again; plain values only."""

    def stop_requested(self) -> int:
        """Exit code of a pending signal on this rank, after which to call `stop_if_requested`; 0: no signal."""
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
    """protocol of `lavis_lite.models.protocols` (or your own) that an evaluated model must have; None: any model"""
    needs_data: ClassVar[type | None] = None
    """protocol of `lavis_lite.datasets.protocols` (or your own) that a data set must have; None: any data set"""
    model_methods: ClassVar[tuple[str, ...]] = ()
    """methods that a model must have besides, by name"""
    gathers_rows: ClassVar[bool] = False
    """whether rows are small. If so, `score` receives the rows of all ranks, sorted by id. Rows of plain values are
    kept until the results are written, so that a killed evaluation does not predict them again"""
    in_line: tuple[str, ...] = ()
    """beginnings of the scores that `line` reports; the summary has those that a subclass adds after it. Empty: all"""
    progress: ProgressHandle = ProgressHandle()
    """for `score`"""

    def __init__(self, cfg: RunConfig) -> None:
        for key, message in cfg.task_errors():
            raise ConfigError(f"run.{key}: {message}")
        self.cfg = cfg

    @classmethod
    def from_config(cls, config: Config) -> BaseTask[Any, Any]:
        """The task of a run; by default made only of its `run:` section."""
        return cls(config.run)

    def prepared(self, model: BaseModel) -> BaseModel:
        """The model of the run, as it was built; a task may freeze parts of it or add some before it trains."""
        return model

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
        """The tasks that evaluate for this one, the most specific first; by default itself."""
        return [self]

    def lacking_methods(self, model: object) -> list[str]:
        """Methods that an evaluation needs and a model (its class, or an instance) lacks."""
        methods = [name for name in self.model_methods if not callable(getattr(model, name, None))]
        return methods + [name for need in self.model_needs(model) for name in lacking(model, need)]

    def model_needs(self, model: object) -> Sequence[type]:
        """Protocols that a model (its class, or an instance) must have, given the run's settings."""
        return [self.needs_model] if self.needs_model is not None else []

    def takes(self, dataset: object) -> bool:
        """Whether the task can evaluate a data set, or its class. Of several data sets, the others only train."""
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
    def part_for(self, dataset: D) -> BaseTask[Any, Any]:
        """The task that evaluates a data set: itself; a `TaskRouter` has several."""
        return self

    def before_evaluation(self, dataset: D, split: str) -> None:
        """Called on every rank before a split's first `predict`.

        Raises:
            DataError: the data set lacks the methods of `needs_data`.
            ContractError: it has the methods of that protocol but lacks attributes.
        """
        if not self.takes(dataset):
            raise DataError(f"split {split!r}: {self.refusal(dataset)}")
        if self.needs_data is not None:
            need(dataset, self.needs_data, f"split {split!r}: run.task={self.cfg.task}")

    def refusal(self, dataset: object) -> str:
        """Why the task cannot evaluate a data set (or its class) that it does not take, and which builders it takes."""
        cls = dataset if isinstance(dataset, type) else type(dataset)
        needs = {need.__name__: lacking(dataset, need, attributes=False) for task in self.evaluators()
                 if (need := task.needs_data) is not None}
        missing = " or ".join(f"{name} (no {', '.join(names)})" for name, names in needs.items())
        known = dict.fromkeys(
            name for task in self.evaluators() if task.needs_data is not None
            for name in names_with(registry.builder, task.needs_data, lambda builder: builder.evaluation_class()))
        return (f"run.task={self.cfg.task} cannot evaluate {cls.__name__}, which lacks the protocol {missing}. "
                f"Builders of such data sets: {', '.join(known) or 'none'}. Use one of them, or remove the split from "
                "run.valid_splits and run.test_splits.")

    def evaluated(self, dataset: D) -> Any:
        """The data set that gives `predict` its samples: the split's own, or a control's version of it."""
        return dataset

    def predict(self, model: M, samples: dict[str, Any]) -> list[Row]:
        """One evaluation batch -> one row per sample with its `id`; values are plain or CPU tensors."""
        raise UndefinedMethodError.of(self, "predict")

    def score(self, model: M, rows: list[Row], dataset: D, split: str) -> dict[str, float]:
        """This rank's rows -> metrics, equal on all ranks; called by all ranks together, collectives are allowed.

        With `gathers_rows` they are the rows of all ranks.

        `agg_metrics` is the number by which the best checkpoint is chosen: higher is better.
        """
        raise UndefinedMethodError.of(self, "score")

    def predictions(self, rows: list[Row], dataset: D) -> list[Row] | Submission | None:
        """All ranks' rows -> the content of the predictions file, one row per id; None: no file.

        Called only if the task gathers its rows. A `Submission` is a file for a benchmark's server.
        """
        return None

    def report(self, rows: list[Row], dataset: D, split: str) -> Sequence[ReportSample] | None:
        """The samples of the report page; None: no page.

        Called after `score` with the same rows, only on rank 0: no collectives here.
        """
        return None

    def illustrated(self, model: M, rows: list[Row], dataset: D,
                    samples: Sequence[ReportSample]) -> Sequence[ReportSample]:
        """What `report` returned, with pictures of where the model looks if the run asks for them.

        Called only on rank 0, with the rows of `report`; the samples themselves by default.
        """
        return samples

    def summary(self, scores: dict[str, float]) -> str:
        """A line for people at the end of a run, from what `score` returned."""
        own = {name: value for name, value in scores.items() if name.startswith(self.in_line or "")}
        added = {name: value for name, value in scores.items() if name not in own}
        return ", ".join(filter(None, (self.line(own), BaseTask.line(self, added))))

    def line(self, scores: dict[str, float]) -> str:
        """The summary of the scores that begin as `in_line` says."""
        return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())

    def has_samples(self, samples: dict[str, Any], *keys: str) -> bool:
        """Whether a batch has usable samples; they must have the keys.

        Raises:
            ContractError: they lack one.
        """
        if samples.keys() <= NOT_OF_SAMPLES:
            return False
        if missing := [key for key in keys if key not in samples]:
            given = ", ".join(sorted(samples.keys() - NOT_OF_SAMPLES))
            raise ContractError(f"run.task={self.cfg.task}: evaluation samples need {', '.join(map(repr, missing))}; "
                                f"those of the data set have {given}. Let the data set's `sample` return "
                                f"{'it' if len(missing) == 1 else 'them'}.")
        return True


# --- needs of a task, compared with classes before anything is built --------------------------------------------------
def unmet_needs(config: Config) -> list[str]:
    """Why the task cannot evaluate the run's data sets with its model, one sentence each; empty if it can.

    Names of the registry must be valid. If a builder does not name its class, its data set is checked when it is built.
    """
    run = config.run
    evaluated = {*run.valid_splits, *run.test_splits}
    if not evaluated:
        return []
    try:
        task = registry.get_task_class(run.task).from_config(config)
    except ConfigError as error:
        return [str(error)]
    classes = data_classes(config, evaluated)
    fitting = {name: cls for name, cls in classes.items() if cls is None or task.takes(cls)}
    if not fitting:
        return [f"datasets.{name}: {task.refusal(cls)}" for name, cls in classes.items() if cls is not None]
    model = registry.get_model_class(config.model.arch)
    problems = (model_problem(task, config.model.arch, model, cls) for cls in fitting.values())
    return list(dict.fromkeys(problem for problem in problems if problem))


def data_classes(config: Config, splits: set[str]) -> dict[str, type | None]:
    """Name -> evaluation class (None: unknown) of the data sets that have one of the splits."""
    found: dict[str, type | None] = {}
    for name, section in config.datasets.items():
        builder = registry.get_builder_class(section.builder or name)
        if splits & set(builder(name, section).splits()):
            found[name] = builder.evaluation_class()
    return found


def model_problem(task: BaseTask[Any, Any], arch: str, model: type[BaseModel], data: type | None) -> str:
    """Why a model cannot be evaluated on a class of data sets, and which models can; "" if it can."""
    parts = [part for part in task.evaluators() if data is None or part.takes(data)]
    if not parts or any(not part.lacking_methods(model) for part in parts):
        return ""
    methods = sorted({name for part in parts for name in part.lacking_methods(model)})
    able = [name for name in registry.list_models()
            if any(not part.lacking_methods(registry.get_model_class(name)) for part in parts)]
    return (f"model.arch={arch}: run.task={task.cfg.task} cannot evaluate {model.__name__}, which has no "
            f"{', '.join(methods)}. Models that it can evaluate: {', '.join(able) or 'none'}. Tasks that can evaluate "
            f"this model: {', '.join(tasks_for(model)) or 'none'}.")


def tasks_for(model: type[BaseModel]) -> list[str]:
    """Tasks of the package that can evaluate a model."""
    found = []
    for name in registry.task.builtins:
        cls = registry.get_task_class(name)
        if cls.needs_model is not None and not lacking(model, cls.needs_model):
            found.append(name)
    return sorted(found)
