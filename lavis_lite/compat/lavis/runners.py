"""LAVIS' runners and schedules.

The step loop is this package's. `RunnerBase` and `RunnerIter` are its runners with LAVIS' constructor and attributes. A
subclass may have its own constructor and `lr_scheduler`, but no loop. Schedules of a project keep LAVIS'
`step(cur_epoch, cur_step)`, and may be written with LAVIS' functions that set a rate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from lavis_lite.compat.lavis.datasets import DatasetAdapter
from lavis_lite.compat.lavis.sections import Config
from lavis_lite.compat.lavis.tasks import BaseTask, PackagedTask, adapted
from lavis_lite.compat.lavis.utils import now
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.errors import ContractError
from lavis_lite.runners.runner import EpochRunner, IterationRunner
from lavis_lite.runners.schedules import LRSchedule

REPLACED = ("train_epoch", "train_iters", "eval_epoch", "train_loader", "valid_step", "create_loaders", "dataloaders",
            "optimizer", "scaler", "setup_output_dir", "_save_checkpoint", "_load_checkpoint",
            "_reload_best_model", "log_stats", "log_config", "wrap_dataset", "unwrap_dist_model")
"""methods of LAVIS' runners; this package does their work in another way"""


class _LavisRunner:
    """LAVIS' constructor and attributes over this package's."""

    cfg: Any
    given: dict[str, Any] | None = None
    """this package's arguments, while a constructor of the project's own is under way with LAVIS'"""
    _lr_sched: Any = None
    _rates: Any = None

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Mapping[str, Mapping[str, Any]], *args: Any,
                 job_id: str | None = None, **kwargs: Any) -> None:
        if self.given is not None:
            super().__init__(model=model, **self.given)  # type: ignore[call-arg]
            return
        if not isinstance(cfg, Config):
            super().__init__(cfg, task, model, datasets, *args, **kwargs)  # type: ignore[call-arg]
            return
        core = cfg.core
        if isinstance(task, PackagedTask):
            task = task.core
        elif isinstance(task, BaseTask):
            adapter: Any = adapted(type(task))(core.run, cfg)
            adapter.task, task = task, adapter
        sets = {name: {split: dataset if isinstance(dataset, BaseDataset) else DatasetAdapter(dataset, name)
                       for split, dataset in splits.items()} for name, splits in datasets.items()}
        folder = Path(core.run.output_dir) / (job_id or now())
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(core, task, model, sets, folder)  # type: ignore[call-arg]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _as_lavis_calls_it(cls.__init__)  # type: ignore[method-assign]
        own = [name for name in REPLACED if name in cls.__dict__]
        if own:
            raise ContractError(f"{cls.__name__}.{own[0]}: the loop over steps, its loaders, optimizer and checkpoints "
                                "are this package's. Write a hook for what happens every so many steps, and "
                                "register optimizers and schedules by name (docs/guide/extending_training.md).")


    def __getattr__(self, name: str) -> Any:
        run = None if name.startswith("_") else self.__dict__.get("run")
        if run is None or not hasattr(run, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(run, name)  # LAVIS' properties that read the run section: max_epoch, init_lr, ...

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return Config(self.cfg)

    @property
    def optimizer(self) -> Any:
        """The optimizer; while `lr_scheduler` is made, one that only keeps the rate."""
        return self._rates or self.train_state.optimizer

    @property
    def train_state(self) -> Any:
        """As this package's; the rates are those of an `lr_scheduler` that the project defined."""
        is_new = self._train_state is None
        train = super().train_state  # type: ignore[misc]
        if is_new and hasattr(type(self), "lr_scheduler"):
            schedule = ScheduleAdapter(train.lr_schedule.init_lr, steps_per_epoch=train.schedule.interval)
            self._rates = schedule.optimizer = one_rate(schedule.init_lr)
            schedule.made, self._rates = self.lr_scheduler, None
            train.lr_schedule = train.train_step.schedule = schedule
        return train


def _as_lavis_calls_it(written: Any) -> Any:
    """A project's constructor, which gets LAVIS' arguments where the engine gives this package's."""

    @functools.wraps(written)
    def constructed(self: Any, cfg: Any, task: Any, model: Any, datasets: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(cfg, Config) or self.given is not None:
            written(self, cfg, task, model, datasets, *args, **kwargs)
            return
        folder = args[0] if args else kwargs.pop("run_dir")
        self.given = {"cfg": cfg, "task": task, "datasets": datasets, "run_dir": folder, **kwargs}
        try:
            written(self, cfg=Config(cfg), task=getattr(task, "task", task), model=model, datasets=datasets,
                    job_id=Path(folder).name)
        finally:
            self.given = None

    return constructed


class RunnerBase(_LavisRunner, EpochRunner):
    """Counts epochs: this package's `runner_base`."""


class RunnerIter(_LavisRunner, IterationRunner):
    """Counts steps in inner epochs: this package's `runner_iter`."""


def with_lavis_constructor(runner: type) -> type:
    """The class with LAVIS' constructor of a runner of the package; any other one as it is."""
    known: dict[type, type] = {EpochRunner: RunnerBase, IterationRunner: RunnerIter}
    return known.get(runner, runner)


def one_rate(rate: float) -> Any:
    """An optimizer that only keeps a rate."""
    return SimpleNamespace(param_groups=[{"lr": rate, "lr_scale": 1.0}])


class ScheduleAdapter(LRSchedule):
    """A schedule of LAVIS, which sets the rate of an optimizer, as a function of the step."""

    written: ClassVar[type]
    made: Any
    optimizer: Any

    @classmethod
    def from_run(cls, cfg: RunConfig, total_steps: int, steps_per_epoch: int) -> ScheduleAdapter:
        """The schedule of a run; it gets LAVIS' arguments and an optimizer with one group."""
        schedule = cls(cfg.init_lr, min_lr=cfg.min_lr, warmup_lr=cfg.warmup_lr, warmup_steps=cfg.warmup_steps,
                       total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        schedule.optimizer = one_rate(cfg.init_lr)
        schedule.made = cls.written(
            optimizer=schedule.optimizer, max_epoch=cfg.max_epoch or -(-total_steps // max(steps_per_epoch, 1)),
            max_iters=total_steps, iters_per_inner_epoch=steps_per_epoch, min_lr=cfg.min_lr, init_lr=cfg.init_lr,
            decay_rate=cfg.lr_decay_rate, warmup_start_lr=cfg.warmup_lr, warmup_steps=cfg.warmup_steps)
        return schedule

    def lr_at(self, step: int) -> float:
        """Rate of the 0-based step, as LAVIS' schedule sets it."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        self.made.step(cur_epoch=epoch, cur_step=inside)
        return float(self.optimizer.param_groups[0]["lr"])


def adapted_schedule(written: type) -> type:
    """The adapter of a schedule class."""
    return type(written.__name__, (ScheduleAdapter,), {"written": written, "__module__": written.__module__})


# lavis.common.optims --------------------------------------------------------------------------------------------------
def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_lr_schedule(optimizer: Any, epoch: int, max_epoch: int, init_lr: float, min_lr: float) -> None:
    """Set the rate of an epoch on half a cosine from `init_lr` to `min_lr`."""
    _set_rate(optimizer, min_lr + (init_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / max_epoch)))


def warmup_lr_schedule(optimizer: Any, step: int, max_step: int, init_lr: float, max_lr: float) -> None:
    """Set the rate of a step on a line from `init_lr` to `max_lr`."""
    _set_rate(optimizer, min(max_lr, init_lr + (max_lr - init_lr) * step / max(max_step, 1)))


def step_lr_schedule(optimizer: Any, epoch: int, init_lr: float, min_lr: float, decay_rate: float) -> None:
    """Set the rate of an epoch, `init_lr` times `decay_rate` per epoch, at least `min_lr`."""
    _set_rate(optimizer, max(min_lr, init_lr * decay_rate ** epoch))


class ConstantLRScheduler:
    """LAVIS' base of schedules that set the rate of an optimizer, for loops of one's own and for subclasses.

    They warm up within epoch 0 and change once an epoch, as in LAVIS. Runs use `lavis_lite.runners.schedules`, which go
    by the step.
    """

    def __init__(self, optimizer: Any, init_lr: float, warmup_start_lr: float = -1, warmup_steps: int = 0,
                 max_epoch: int = 1, min_lr: float = 0.0, decay_rate: float = 1.0, **others: Any) -> None:
        self.optimizer, self.max_epoch, self.min_lr, self.init_lr = optimizer, max_epoch, min_lr, init_lr
        self.decay_rate, self.warmup_steps = decay_rate, warmup_steps
        self.warmup_start_lr = warmup_start_lr if warmup_start_lr >= 0 else init_lr

    def step(self, cur_epoch: int, cur_step: int = 0) -> None:
        """Set the rate of a step of an epoch, both counted from 0."""
        if cur_epoch == 0:
            warmup_lr_schedule(self.optimizer, cur_step, self.warmup_steps, self.warmup_start_lr, self.init_lr)
        else:
            self.after_warmup(cur_epoch)

    def after_warmup(self, cur_epoch: int) -> None:
        """Set the rate of an epoch after the first: `init_lr`."""
        _set_rate(self.optimizer, self.init_lr)


class LinearWarmupCosineLRScheduler(ConstantLRScheduler):
    """Half a cosine from `init_lr` to `min_lr`."""

    def after_warmup(self, cur_epoch: int) -> None:
        """As `cosine_lr_schedule`."""
        cosine_lr_schedule(self.optimizer, cur_epoch, self.max_epoch, self.init_lr, self.min_lr)


class LinearWarmupStepLRScheduler(ConstantLRScheduler):
    """`decay_rate` per epoch."""

    def after_warmup(self, cur_epoch: int) -> None:
        """As `step_lr_schedule`."""
        step_lr_schedule(self.optimizer, cur_epoch, self.init_lr, self.min_lr, self.decay_rate)


SCHEDULES = {"linear_warmup_cosine_lr": LinearWarmupCosineLRScheduler, "constant_lr": ConstantLRScheduler,
             "linear_warmup_step_lr": LinearWarmupStepLRScheduler}
"""the package's schedules, with LAVIS' constructor"""
