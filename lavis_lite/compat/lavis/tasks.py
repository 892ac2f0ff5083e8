"""LAVIS' tasks: the base class for a project's, and the adapter by which the runner and the evaluator use them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.compat.lavis import paths
from lavis_lite.compat.lavis.registry import registry
from lavis_lite.compat.lavis.sections import Config, reading, section_class
from lavis_lite.config.schema import Config as CoreConfig
from lavis_lite.config.schema import ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.device import to_device
from lavis_lite.errors import ContractError, UndefinedMethodError
from lavis_lite.io import atomic
from lavis_lite.tasks.base import BaseTask as CoreTask
from lavis_lite.tasks.base import Row

LOOPS = ("train_epoch", "train_iters", "_train_inner_loop")
"""methods of LAVIS' tasks that are this package's runner here"""


class BaseTask:
    """A task written for LAVIS: `setup_task(cfg)`, `train_step`, `valid_step`, `after_evaluation`."""

    def __init__(self, **kwargs: Any) -> None:
        self.inst_id_key = "instance_id"

    @classmethod
    def setup_task(cls, *args: Any, **kwargs: Any) -> Any:
        """The task of a run; `cfg` is among the arguments."""
        return cls()

    def build_model(self, cfg: Config) -> Any:
        """The model of a run, with its weights. In a run, a project's override is called with the one that is there."""
        from lavis_lite.checkpoints.weights import build_model

        return registry.built_model or build_model(cfg.core.model, print)

    def build_datasets(self, cfg: Config) -> Mapping[str, Mapping[str, Any]]:
        """Data set -> split -> data set. In a run, a project's override is called with those that the run uses."""
        from lavis_lite.engine import build_datasets

        return registry.built or build_datasets(cfg.core)

    def train_step(self, model: Any, samples: Any) -> tuple[Tensor, dict[str, Any]]:
        """One batch -> (the loss, every value of the model's output with "loss" in its name)."""
        output = model(samples)
        return output["loss"], {name: value for name, value in output.items() if "loss" in name}

    def valid_step(self, model: Any, samples: Any) -> Any:
        """One batch -> a list of results."""
        raise UndefinedMethodError.of(self, "valid_step")

    def before_training(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Called before the first step."""
        if hasattr(model, "before_training"):
            model.before_training(dataset=dataset, task_type=type(self))

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Called before a split is evaluated."""
        if hasattr(model, "before_evaluation"):
            model.before_evaluation(dataset=dataset, task_type=type(self))

    def after_evaluation(self, *args: Any, **kwargs: Any) -> Any:
        """All results of a split (`val_result`) -> metrics, `agg_metrics` among them; None: nothing to measure."""

    def evaluation(self, model: Any, data_loader: Iterable[Any], cuda_enabled: bool = True) -> list[Any]:
        """The results of all batches of a loader."""
        return [result for samples in data_loader for result in self.valid_step(model=model, samples=samples) or []]

    @staticmethod
    def save_result(result: Sequence[Any], result_dir: str, filename: str, remove_duplicate: str = "") -> str:
        """Write results as JSON, on rank 0, and return the path.

        Args:
            result: of all ranks.
            result_dir: a folder; it is made if need be.
            filename: without its ending.
            remove_duplicate: a key; of results with equal values of it the first is kept.
        """
        path = Path(result_dir) / f"{filename}.json"
        if distributed.is_main():
            kept = list({row[remove_duplicate]: row for row in reversed(result)}.values())[::-1] \
                if remove_duplicate else list(result)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(kept))
        distributed.barrier()
        return str(path)


class PackagedTask(BaseTask):
    """A task of this package for LAVIS' scripts, which build model and data sets through it."""

    def __init__(self, core: CoreTask) -> None:
        super().__init__()
        self.core = core


class TaskAdapter(CoreTask):
    """A task of LAVIS as one of this package.

    Results of all ranks are brought together in the order of the samples before `after_evaluation`, which every rank
    calls with all of them.
    """

    written: ClassVar[type[BaseTask]]
    section_class: ClassVar[type[RunConfig]]

    def __init__(self, cfg: RunConfig, config: Config | None = None) -> None:
        super().__init__(cfg)
        self.config = config or Config(CoreConfig(ModelConfig(), PreprocessConfig(), {}, cfg))
        with reading("run", self.written):
            self.task: Any = self.written.setup_task(cfg=self.config)
        self._evaluated: Any = None
        self._shown = False

    @classmethod
    def from_config(cls, config: CoreConfig) -> TaskAdapter:
        """The task of a run; LAVIS' `setup_task` gets all sections."""
        return cls(config.run, Config(config))

    # training -------------------------------------------------------------------------------------------------------
    def prepared(self, model: Any) -> Any:
        """What the project's own `build_model` makes of the model, if it has one."""
        if self.written.build_model is BaseTask.build_model:
            return model
        registry.built_model = model
        try:
            return self.task.build_model(self.config)
        finally:
            registry.built_model = None

    def before_training(self, model: Any, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell the task, and so the model; the data set is that of the first training split."""
        found = [splits[split] for splits in datasets.values() for split in self.cfg.train_splits if split in splits]
        self._show(datasets)
        self.task.before_training(model=model, dataset=as_written(found[0]) if found else None)

    def _show(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Call the project's own `build_datasets`, if it has one, with data sets that are there: it may keep parts."""
        if self.written.build_datasets is not BaseTask.build_datasets:
            registry.built = {name: {split: as_written(dataset) for split, dataset in splits.items()}
                              for name, splits in datasets.items()}
            try:
                self.task.build_datasets(self.config)
            finally:
                registry.built, self._shown = {}, True

    def train_step(self, model: Any, samples: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """One micro-batch -> (loss, its parts)."""
        loss, parts = self.task.train_step(model=model, samples=samples)
        tensors = {name: torch.as_tensor(value, device=loss.device).detach() for name, value in parts.items()}
        return loss, {**tensors, "loss": loss.detach()}

    # evaluation -------------------------------------------------------------------------------------------------------
    def before_evaluation(self, dataset: Any, split: str) -> None:
        """Remember the data set: LAVIS' method of this name wants the model too, which comes with the first batch."""
        self._evaluated = dataset
        if not self._shown:  # else it knows those of the training
            self._show({next(iter(self.config.core.datasets), ""): {split: dataset}})
            self._shown = False

    def evaluated(self, dataset: Any) -> Any:
        """Nothing to predict for tasks that loop over the loader themselves."""
        return [] if self._loops_itself else dataset

    @property
    def _loops_itself(self) -> bool:
        return type(self.task).evaluation is not BaseTask.evaluation

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        """One row per batch: the results of `valid_step`."""
        self._prepare(model)
        return [{"results": list(self.task.valid_step(model=model, samples=samples) or [])}]

    def _prepare(self, model: Any) -> None:
        if self._evaluated is not None:
            dataset, self._evaluated = self._evaluated, None
            self.task.before_evaluation(model=model, dataset=as_written(dataset))

    def score(self, model: Any, rows: list[Row], dataset: Any, split: str) -> dict[str, float]:
        """Metrics by LAVIS' `after_evaluation`, those of rank 0."""
        self._prepare(model)
        folder = Path(self.progress.run_dir) if self.progress.run_dir else Path(self.cfg.output_dir)
        paths.ROOTS.update(output_dir=str(folder), result_dir=str(folder / "result"))
        results = self._own_evaluation(model, dataset) if self._loops_itself else merged(rows)
        found = self.task.after_evaluation(val_result=results, split_name=split, epoch=self.progress.step)
        scores = distributed.broadcast_object(found if distributed.is_main() else None)
        if scores is not None and not isinstance(scores, Mapping):
            raise ContractError(f"{type(self.task).__name__}.after_evaluation must return a dict of numbers, not "
                                f"{type(scores).__name__}.")
        return {str(name): float(value) for name, value in (scores or {}).items() if _is_number(value)}

    def _own_evaluation(self, model: Any, dataset: Any) -> Any:
        loader = eval_loader(dataset, self.cfg, distributed.rank(), distributed.world_size())
        return self.task.evaluation(model, Batches(loader, model.device, as_written(dataset)),
                                    cuda_enabled=model.device.type == "cuda")


class Batches:
    """A loader as a project's loop sees it: with its length and data set, its batches on a device."""

    def __init__(self, loader: Any, device: torch.device, dataset: Any) -> None:
        self.loader, self.device, self.dataset = loader, device, dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (to_device(batch, self.device) for batch in self.loader)


def as_written(dataset: Any) -> Any:
    """The data set of a project, without the adapter."""
    return getattr(dataset, "written", dataset)


def merged(rows: list[Row]) -> list[Any]:
    """The results of all ranks in the order of the batches, which went to ranks in turn. Collective."""
    every = distributed.all_gather_object([row["results"] for row in rows])
    return [result for turn in itertools.zip_longest(*every, fillvalue=()) for batch in turn for result in batch]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (hasattr(value, "item") and getattr(value, "size", 1) in (1, ()))


def adapted(written: type) -> type:
    """The adapter of a task class.

    Raises:
        ContractError: it overrides a loop that this package's runner has in its place.
    """
    own = [name for name in LOOPS if any(name in base.__dict__ for base in written.__mro__)]
    if own:
        raise ContractError(f"{written.__name__}.{own[0]}: the loop over steps is this package's runner. Move the work "
                            "on a batch to train_step, and what happens every so many steps to a hook "
                            "(docs/guide/extending_training.md).")
    return type(written.__name__, (TaskAdapter,), {
        "written": written, "section_class": section_class(RunConfig, written), "__module__": written.__module__})


def setup_task(cfg: Config) -> Any:
    """The task of a run."""
    found = registry.get_task_class(cfg.run_cfg.task)
    return found.setup_task(cfg=cfg) if hasattr(found, "setup_task") else PackagedTask(found.from_config(cfg.core))
