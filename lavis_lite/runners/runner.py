"""The runner: the one step loop, and when to validate, save, resume and leave.

`runner_base` counts epochs and `runner_iter` inner epochs of a given number of steps; they differ in their schedule
only. "Step" is an optimizer step everywhere. After a step come its hooks (the log is one), then the validation, then
the checkpoint. In this order a checkpoint knows the best metric of its own step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from lavis_lite import distributed
from lavis_lite.checkpoints.manifest import stored_record
from lavis_lite.config.schema import Config
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.device import Precision, pick_device
from lavis_lite.errors import ConfigError, UndefinedMethodError
from lavis_lite.evaluation.evaluator import AGGREGATE, Evaluator, Scores, check_splits
from lavis_lite.evaluation.resume import EvaluationStopped
from lavis_lite.process.exits import EVALUATION_ANSWER, Interrupted, SignalWatch
from lavis_lite.process.launch import Launch
from lavis_lite.registry import registry
from lavis_lite.runners import checkpointing, resume, schedules
from lavis_lite.runners.hooks.base import Hooks, RunContext, build_hooks
from lavis_lite.runners.outcome import Asked
from lavis_lite.runners.placement import eagerly, prepare_for_training, whole_blocks
from lavis_lite.runners.ranks import Ahead
from lavis_lite.runners.schedules import TrainSchedule
from lavis_lite.runners.standard_hooks import BadSamples, TrainingLog, skipped_record
from lavis_lite.runners.train_state import Datasets, TrainState
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel


class Runner:
    """Trains and evaluates one model on one task. Use a subclass, which defines how long a run is.

    Args:
        cfg: the whole checked configuration.
        task: what a step computes and how predictions are scored.
        model: built, on any device; it is moved.
        datasets: data set name -> split -> map-style data set.
        run_dir: folder of this run, equal on all ranks; it is made if need be.
        launch: which process this is.
        tracker: where records go; by default what the `run:` section asks for, on rank 0.
        device: by default `run.device`.

    Raises:
        ConfigError: a split that no data set has; an impossible device, precision or hook.
    """

    def __init__(self, cfg: Config, task: BaseTask, model: BaseModel, datasets: Datasets, run_dir: Path,
                 launch: Launch | None = None, tracker: Tracker | None = None,
                 device: torch.device | None = None) -> None:
        self.cfg, self.run, self.task = cfg, cfg.run, task
        self.run_dir, self.launch = Path(run_dir), launch or Launch()
        self.device = device or pick_device(self.run.device, self.launch.local_rank)
        self.precision = Precision.from_run(self.run, self.device)
        self.model = (model.to(self.device) if self.run.evaluate else
                      prepare_for_training(model, self.run, self.device))
        self.tracker = tracker or Tracker.from_run(self.run, self.run_dir, distributed.is_main())
        self.watch = SignalWatch()
        self.bad_samples = BadSamples(self.run, self.run_dir)
        self.context = RunContext(cfg, task, self.model, datasets, self.run_dir, self.device, self.precision,
                                  self.tracker, distributed.rank(),
                                  step=self.model.weight_record.step if self.run.evaluate else 0)
        if not self.run.evaluate:
            _ = self.hooks  # one that refuses its arguments does so now
        loader = partial(eval_loader, share_pictures=self.model.takes_image_rows)
        self.evaluator = Evaluator(task, self.model, cfg, self.device, self.precision, loader, self.bad_samples,
                                   self.run_dir, self.tracker, lambda: self.watch.code, self.weights)
        check_splits(datasets, self.run.valid_splits, "valid_splits")
        check_splits(datasets, self.run.test_splits, "test_splits")
        self.validated_step = self.saved_step = 0
        self.best: dict[str, Any] | None = None
        self._testing = False
        self._save_reason = ""
        self._train_state: TrainState | None = None

    def train_schedule(self, steps_per_epoch: int) -> TrainSchedule:
        """Length of the run and of its intervals, in optimizer steps."""
        raise UndefinedMethodError.of(self, "train_schedule")

    @cached_property
    def store(self) -> checkpointing.CheckpointStore:
        """The checkpoints of the run folder."""
        return checkpointing.CheckpointStore(self.run_dir, self.run.keep_checkpoints)

    @cached_property
    def hooks(self) -> Hooks:
        """The hooks of a training: those of the package, then those of `run.hooks`."""
        return Hooks([TrainingLog(), self.bad_samples, *build_hooks(self.run)], self.context)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.context.step

    @step.setter
    def step(self, done: int) -> None:
        self.context.step = done

    @property
    def datasets(self) -> Datasets:
        """Data set name -> split -> data set."""
        return self.context.datasets

    @datasets.setter
    def datasets(self, datasets: Datasets) -> None:
        self.context.datasets = datasets

    # --- what the engine calls ------------------------------------------------------------------------------------
    def execute(self) -> dict[str, Scores]:
        """What the `run:` section asks for: only `evaluate`, or `train`."""
        return self.evaluate() if self.run.evaluate else self.train()

    def train(self) -> dict[str, Scores]:
        """Train to the end (from a resumed step if there is one), validating and saving on the way, then test.

        Returns:
            Metrics by test split, measured on the best checkpoint where validation chose one, else on the last.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            DivergedError: loss or gradients stay non-finite.
            CheckpointError: a checkpoint cannot be written.
            DistributedError: another rank has died or hangs.
        """
        train = self.train_state
        saves = train.schedule.saves_later(self.step, self.run)
        self.store.prepare(checkpointing.checkpoint_bytes(self.model, self.run) if saves else 0)
        with self.watch:
            self.tracker.open(self.step, train.schedule.total)
            try:
                self.task.before_training(self.model, self.datasets)
                with eagerly(self.run):
                    self.hooks.on_start()
                self._validate_if_due(after_resume=True)
                with closing(train.batches(self.step, train.schedule.total)) as batches:
                    self._loop(train, Ahead(batches))
                self.hooks.on_end()
                return self._test()
            except EvaluationStopped as stop:
                self._leave(stop.exit_code)
            except RuntimeError as error:
                if not distributed.peer_is_gone(error):
                    raise
                raise distributed.rank_is_gone(error, f" (noticed after step {self.step})") from error
            finally:
                self.tracker.close()

    def evaluate(self, splits: Sequence[str] | None = None) -> dict[str, Scores]:
        """Metrics by split with the present weights; by default of all validation and test splits.

        Raises:
            ConfigError: there is no such split, or none to evaluate at all.
            Interrupted: a signal asked to stop.
        """
        wanted = list(self.run.valid_splits + self.run.test_splits if splits is None else splits)
        if not wanted:
            raise ConfigError("nothing to evaluate: set run.test_splits (or run.valid_splits).")
        check_splits(self.datasets, wanted, "splits")
        with self.watch, self.watch.answering(EVALUATION_ANSWER):
            try:
                return self.evaluator.splits(self.datasets, dict.fromkeys(wanted), self.step)
            except EvaluationStopped as stop:
                kept = f"{stop.kept}; the same command continues" if stop.kept else ""
                raise Interrupted(stop.exit_code, None, self.step, kept) from stop
            finally:
                self.tracker.close()

    def resume(self, folder: Path) -> None:
        """Take over everything of a checkpoint. Call before `train`, on all ranks.

        Raises:
            CheckpointError: damaged, or it does not fit the model.
            ConfigError: the order of samples or the annotations are others, or the run ends before the checkpoint's
                step.
        """
        train = self.train_state
        state = checkpointing.load(folder, self.model)
        if state["step"] > train.schedule.total:
            raise ConfigError(f"{folder} is of step {state['step']}, and this run ends after {train.schedule.total} "
                              "(run.max_iters or run.max_epoch): raise it, or evaluate the checkpoint instead.")
        resume.check_order(state["order"], train.fingerprint, folder)
        kept = checkpointing.load_hook_weights(folder)
        hook_states = {"bad_samples": state["bad_samples"], **state.get("hooks", {})}  # none in earlier versions
        for note in [*resume.resume_notes(folder, checkpointing.config_yaml(self.cfg), state, train.fingerprint,
                                          train.micro_batch, self.model.in_batch_negatives),
                     *self.hooks.load_state(hook_states, list(kept))]:
            self.tracker.log(note)
        self.hooks.load_weights(kept)
        train.train_step.load_state(state)
        self.step = self.saved_step = state["step"]
        self.validated_step, self.best = state["validated_step"], state["best"]
        if self.best is not None and not (best := self.store.path(self.best["step"])).is_dir():
            self.tracker.log(f"WARNING: {best}, the best checkpoint, is not there any more. The best one is chosen "
                             "among those from here on.")
            self.best = None
        self.model.weight_record = stored_record(folder) or self.model.weight_record
        self.context.resumed = True

    def weights(self, step: int) -> str:
        """What the weights are after `step` steps of this run, in one line; an evaluation's are as they were loaded.

        "" for a model without a record.
        """
        record = self.model.weight_record
        return record.describe(0 if self.run.evaluate else step) if record.sources else ""

    def one_step(self) -> dict[str, float]:
        """Run the first step and return its losses; no file is written. For `--dry-run`."""
        train = self.train_state
        self.model.train()
        with closing(train.batches(0, 1)) as batches:
            return train.train_step.run(0, self._next_step(Ahead(batches))).mean_over_ranks()

    # --- the loop -------------------------------------------------------------------------------------------------
    @property
    def train_state(self) -> TrainState:
        """Order, optimizer and schedules, made when first needed (an evaluation needs none)."""
        if self._train_state is None:
            train = TrainState(self.cfg, self.task, self.model, self.datasets, self.train_schedule, self.device,
                               self.precision)
            train.train_step.on_skip = lambda step, losses: self.tracker.record(skipped_record(step, losses, train))
            self._train_state = self.context.train = train
            self.context.last_step = train.schedule.total
        return self._train_state

    def _loop(self, train: TrainState, batches: Ahead) -> None:
        self.model.train()
        micro = self._next_step(batches)
        if micro:
            train.train_step.warm_up_ddp(micro[0])
        train.speed.lap()
        while self.step < self.context.last_step:
            self.hooks.before_step()
            result = train.train_step.run(self.step, micro, lambda: self.watch.code, self._asked(), batches)
            self.step += 1
            train.speed.steps += 1
            with eagerly(self.run):  # a hook may write texts
                self.hooks.after_step(result)
            due = self._saves() or self._validates()
            verdict = train.train_step.agree(flush=due or self.step == self.context.last_step)
            if verdict.exit_code:
                self._leave(verdict.exit_code)
            if verdict.asked is Asked.STOP:
                self._end_here()
            with train.speed.paused():
                self._validate_if_due()
                if (self._saves() or self._is_asked_to_save(verdict.asked)) and self.saved_step != self.step:
                    self._save()
            with train.speed.waiting():
                micro = self._next_step(batches)

    def _next_step(self, batches: Ahead) -> list[dict[str, Any]]:
        micro = list(islice(batches, self.run.accum_grad_iters))
        for batch in micro:
            self.bad_samples.take(batch, self.run.batch_size_train)
        if self.run.overlap_exchange and distributed.world_size() > 1:
            batches.fetch()
        return micro

    def _saves(self) -> bool:
        return self.train_state.schedule.saves(self.step, self.run, self.context.last_step)

    def _validates(self) -> bool:
        return self.train_state.schedule.validates(self.step, self.run, self.context.last_step)

    def _end_here(self) -> None:
        """Make the present step the last one, as a hook requested; called by all ranks together."""
        if self.step < self.context.last_step:
            self.context.last_step = self.step
            reasons = distributed.all_gather_object(self.context.stop_reason)
            self.tracker.log(f"step {self.step}  {next(filter(None, reasons), 'a hook')}; the run ends here")

    def _asked(self) -> Asked:
        """What the hooks of this rank request; a request for a checkpoint counts once."""
        context = self.context
        if not context.save_reason:
            return Asked.STOP if context.stop_reason else Asked.NOTHING
        self._save_reason, context.save_reason = context.save_reason, ""
        return Asked.STOP if context.stop_reason else Asked.SAVE

    def _is_asked_to_save(self, asked: Asked) -> bool:
        """Whether a hook of some rank requested a checkpoint; then the log says why. All ranks call it together."""
        if asked is Asked.SAVE:
            reasons = distributed.all_gather_object(self._save_reason)
            self._save_reason = ""
            self.tracker.log(f"step {self.step}  checkpoint: {next(filter(None, reasons), 'a hook')}")
        return asked is Asked.SAVE

    def _leave(self, code: int) -> NoReturn:
        """Save, unless the weights in the model are those of the test already, and go."""
        if self.saved_step != self.step and not self._testing:
            self.train_state.train_step.agree(flush=True)
            self._save()
        raise Interrupted(code, self.store.path(self.saved_step) if self.saved_step else None, self.step)

    def _save(self) -> None:
        self.hooks.on_save()
        hooks = self.hooks.state()
        state = {"step": self.step, "validated_step": self.validated_step, "best": self.best,
                 "order": self.train_state.fingerprint, "micro_batch": self.train_state.micro_batch,
                 "bad_samples": hooks.pop("bad_samples"), **({"hooks": hooks} if hooks else {}),
                 **self.train_state.train_step.state()}
        self.store.save(self.step, self.model, state, checkpointing.config_yaml(self.cfg), self.hooks.weights())
        self.saved_step = self.step

    # --- evaluating -----------------------------------------------------------------------------------------------
    def _validate_if_due(self, after_resume: bool = False) -> None:
        """Validate the present step, unless that is done; the first split's `agg_metrics` chooses the best."""
        if not self._validates() or self.validated_step == self.step:
            return
        metrics = self._evaluate(self.run.valid_splits)
        self.validated_step = self.step
        if self.hooks.agree_to_stop():
            self._end_here()
        first = self.run.valid_splits[0]
        value = metrics[first].get(AGGREGATE)
        before = self.best if self.best is not None and self.best["split"] == first else None  # else not comparable
        if value is not None and value == value and (before is None or value > before["metric"]):
            self.best = {"step": self.step, "metric": value, "split": first}
            self._save()
        elif after_resume:
            self._save()

    def _evaluate(self, splits: Sequence[str], weights_of: int | None = None) -> dict[str, Scores]:
        with self.hooks.during_evaluation(), whole_blocks(self.model), eagerly(self.run), \
                self.watch.answering(EVALUATION_ANSWER):
            return self.evaluator.splits(self.datasets, splits, self.step, self.train_state.schedule.epoch(self.step),
                                         weights_of, self.hooks.after_evaluation)

    def _test(self) -> dict[str, Scores]:
        if not self.run.test_splits:
            return {}
        self._testing, measured = True, self.step
        if self.best is not None and self.best["step"] != self.step:
            measured = self.best["step"]
            folder = self.store.path(measured)
            checkpointing.load_weights(folder, self.model)
            nothing: dict[str, Any] = dict.fromkeys(self.hooks.weights(), {})  # it may be older than a hook
            self.hooks.load_weights(nothing | checkpointing.load_hook_weights(folder))
            self.tracker.log(f"testing the best checkpoint, {folder} "
                             f"({self.best['split']} {AGGREGATE} {self.best['metric']:.4g})")
        return self._evaluate(self.run.test_splits, measured)


@registry.register_runner("runner_base")
class EpochRunner(Runner):
    """`max_epoch` passes over the training data; saves and validates every so many epochs."""

    def train_schedule(self, steps_per_epoch: int) -> TrainSchedule:
        """By epochs, see `schedules.by_epochs`."""
        return schedules.by_epochs(self.run, steps_per_epoch)


@registry.register_runner("runner_iter")
class IterationRunner(Runner):
    """`max_iters` optimizer steps; saves and validates every so many inner epochs of `iters_per_inner_epoch` steps."""

    def train_schedule(self, steps_per_epoch: int) -> TrainSchedule:
        """By inner epochs, see `schedules.by_iterations`."""
        return schedules.by_iterations(self.run, steps_per_epoch)
