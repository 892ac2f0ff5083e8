"""The runner: the one step loop, and when to log, validate, save, resume and leave.

`runner_base` counts epochs and `runner_iter` inner epochs of a given number of steps; they differ in their bounds only.
"Step" is an optimizer step everywhere. A step logs, then validates, then saves, in this order, so that a checkpoint
knows the best metric of its own step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import yaml

from lavis_lite import distributed
from lavis_lite.checkpoints.manifest import stored_record
from lavis_lite.config.schema import Config
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.evaluation.evaluator import AGGREGATE, Evaluator
from lavis_lite.evaluation.progress import EvaluationStopped
from lavis_lite.process.launch import Launch
from lavis_lite.registry import registry
from lavis_lite.runners import bounds, checkpointing, resume
from lavis_lite.runners.bad_samples import BadSamples
from lavis_lite.runners.bounds import Bounds
from lavis_lite.runners.cut_texts import CutTextReport
from lavis_lite.runners.parts import Datasets, Speed, TrainingParts
from lavis_lite.runners.precision import Precision, pick_device
from lavis_lite.runners.sharding import share_out
from lavis_lite.runners.signals import EVALUATION_ANSWER, Interrupted, SignalWatch
from lavis_lite.runners.step import StepResult
from lavis_lite.runners.step_records import skipped_record, training_record
from lavis_lite.tasks.base import BaseTask
from lavis_lite.tracking.tracker import Tracker, parameter_table

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel


class Runner:
    """Trains and evaluates one model on one task. Use a subclass, which says how a run is bounded.

    Args:
        cfg: the whole checked configuration.
        task: what a step computes and how predictions are scored.
        model: built, on any device; it is moved.
        datasets: data set name -> split -> map-style data set.
        run_dir: folder of this run, equal on all ranks; it is made if need be.
        launch: which process this is.
        tracker: where records go; by default what the `run:` section asks for, on rank 0.
        device: by default what `run.device` says.

    Raises:
        ConfigError: a split that no data set has; an impossible device or precision.
    """

    def __init__(self, cfg: Config, task: BaseTask, model: BaseModel, datasets: Datasets, run_dir: Path,
                 launch: Launch | None = None, tracker: Tracker | None = None,
                 device: torch.device | None = None) -> None:
        self.cfg, self.run, self.task, self.datasets = cfg, cfg.run, task, datasets
        self.run_dir, self.launch = Path(run_dir), launch or Launch()
        self.device = device or pick_device(self.run.device, self.launch.local_rank)
        self.precision = Precision.from_run(self.run, self.device)
        share_out(model, self.run, self.device)
        self.model = model.to(self.device)
        self.tracker = tracker or Tracker.from_run(self.run, self.run_dir, distributed.is_main())
        self.store = checkpointing.CheckpointStore(self.run_dir, self.run.keep_checkpoints)
        self.watch = SignalWatch()
        self.bad_samples = BadSamples(self.run, self.run_dir)
        self.cut_texts = CutTextReport(self.model, self.tracker.say)
        loader = partial(eval_loader, share_pictures=self.model.takes_image_rows)
        self.evaluator = Evaluator(task, self.model, cfg, self.device, self.precision, loader, self.bad_samples,
                                   self.run_dir, self.tracker, lambda: self.watch.code)
        self.validated_step = self.saved_step = 0
        self.step = self.model.weight_record.step if self.run.evaluate else 0
        self.best: dict[str, Any] | None = None
        self.resumed_from: Path | None = None
        self._testing = False
        self._parts: TrainingParts | None = None
        self._check_splits(self.run.valid_splits, "valid_splits")
        self._check_splits(self.run.test_splits, "test_splits")

    def bounds(self, steps_per_epoch: int) -> Bounds:
        """Length of the run and of its units, in optimizer steps."""
        raise NotImplementedError(f"{type(self).__name__} must define bounds")

    # --- what the engine calls ------------------------------------------------------------------------------------
    def execute(self) -> dict[str, dict[str, float]]:
        """What the `run:` section asks for: `evaluate` alone, or `train`."""
        return self.evaluate() if self.run.evaluate else self.train()

    def train(self) -> dict[str, dict[str, float]]:
        """Train to the end (from where `resume` stands), validating and saving on the way, then test.

        Returns:
            Metrics by test split, measured on the best checkpoint where validation chose one, else on the last.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            DivergedError: loss or gradients stay non-finite.
            CheckpointError: a checkpoint cannot be written.
            DistributedError: another rank has died or hangs.
        """
        parts = self.parts
        self.store.prepare()
        with self.watch:
            self.tracker.open(self.step, parts.bounds.total)
            try:
                self._introduce()
                self.task.before_training(self.model, self.datasets)
                self._validate_if_due(after_resume=True)
                with closing(parts.batches(self.step, parts.bounds.total)) as batches:
                    self._loop(parts, batches)
                self.cut_texts.now()
                return self._test()
            except EvaluationStopped as stop:
                self._leave(stop.exit_code)
            except RuntimeError as fault:
                if not distributed.peer_is_gone(fault):
                    raise
                raise distributed.rank_is_gone(fault, f" (noticed after step {self.step})") from fault
            finally:
                self.tracker.close()

    def evaluate(self, splits: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """Metrics by split with the present weights; by default of all validation and test splits.

        Raises:
            ConfigError: there is no such split, or none to evaluate at all.
            Interrupted: a signal asked to stop.
        """
        wanted = list(self.run.valid_splits + self.run.test_splits if splits is None else splits)
        if not wanted:
            raise ConfigError("nothing to evaluate: set run.test_splits (or run.valid_splits).")
        self._check_splits(wanted, "splits")
        with self.watch:
            try:
                return self._evaluate_splits(dict.fromkeys(wanted))
            except EvaluationStopped as stop:
                kept = f"{stop.kept}; the same command goes on" if stop.kept else ""
                raise Interrupted(stop.exit_code, None, self.step, kept) from stop
            finally:
                self.tracker.close()

    def resume(self, folder: Path) -> None:
        """Stand where a checkpoint stands. Call before `train`, on all ranks.

        Raises:
            CheckpointError: damaged, or it does not fit the model.
            ConfigError: the order of samples or the annotations are not the checkpoint's, so the run would not be the
                same.
        """
        parts = self.parts
        state = checkpointing.load(folder, self.model)
        resume.check_order(state["order"], parts.fingerprint, folder)
        for note in resume.resume_notes(folder, config_yaml(self.cfg), state, parts.micro_batch,
                                        self.model.in_batch_negatives):
            self.tracker.say(note)
        parts.stepper.load_state(state)
        self.step = self.saved_step = state["step"]
        self.validated_step, self.best = state["validated_step"], state["best"]
        self.bad_samples.load_state(state["bad_samples"])
        self.model.weight_record = stored_record(folder) or self.model.weight_record
        self.resumed_from = Path(folder)

    def weights(self, step: int) -> str:
        """What the weights are after `step` steps of this run, in one line; an evaluation's are as they were loaded.

        "" for a model whose builder kept no record.
        """
        record = self.model.weight_record
        return record.describe(0 if self.run.evaluate else step) if record.sources else ""

    def one_step(self) -> dict[str, float]:
        """Run the first step and return its losses; no file is written. For `--dry-run`."""
        parts = self.parts
        self.model.train()
        with closing(parts.batches(0, 1)) as batches:
            return parts.stepper.run(0, self._next_step(batches)).mean_over_ranks()

    # --- the loop -------------------------------------------------------------------------------------------------
    @property
    def parts(self) -> TrainingParts:
        """Order, optimizer, schedule and stepper, made when first needed (an evaluation needs none)."""
        if self._parts is None:
            self._parts = TrainingParts(self.cfg, self.task, self.model, self.datasets, self.bounds, self.device,
                                        self.precision)
            self._parts.stepper.on_skip = self._log_skipped
        return self._parts

    def _loop(self, parts: TrainingParts, batches: Iterator[dict[str, Any]]) -> None:
        self.model.train()
        micro = self._next_step(batches)
        if micro:
            parts.stepper.rehearse(micro[0])
        speed = Speed(parts.order.global_batch)
        while self.step < parts.bounds.total:
            result = parts.stepper.run(self.step, micro, lambda: self.watch.code)
            self.step += 1
            speed.steps += 1
            self.tracker.advance(self.step)
            if parts.bounds.logs(self.step, self.run):
                self._log(result, speed)
                self.cut_texts.at_start()
                self.bad_samples.share(step=self.step)
            due = parts.bounds.saves(self.step, self.run), parts.bounds.validates(self.step, self.run)
            _, leave = parts.stepper.agree(flush=any(due) or self.step == parts.bounds.total)
            if leave:
                self._leave(leave)
            with speed.paused():
                self._validate_if_due()
                if due[0] and self.saved_step != self.step:
                    self._save()
            with speed.waiting():
                micro = self._next_step(batches)

    def _next_step(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        micro = list(islice(batches, self.run.accum_grad_iters))
        for batch in micro:
            self.bad_samples.take(batch, self.run.batch_size_train)
        return micro

    def _log(self, result: StepResult, speed: Speed) -> None:
        self.tracker.record(training_record(self.step, result.lr, self.parts.stepper.losses, self.parts, speed,
                                            self.device))

    def _log_skipped(self, step: int, losses: list[float]) -> None:
        self.tracker.record(skipped_record(step, losses, self.parts, self.parts.stepper.skipped))

    def _leave(self, code: int) -> NoReturn:
        """Save, unless the weights in the model are those of the test already, and go."""
        if self.saved_step != self.step and not self._testing:
            self.parts.stepper.agree(flush=True)
            self._save()
        raise Interrupted(code, self.store.path(self.saved_step) if self.saved_step else None, self.step)

    # --- saving ---------------------------------------------------------------------------------------------------
    def _save(self) -> None:
        self.bad_samples.share(step=self.step)
        state = {"step": self.step, "validated_step": self.validated_step, "best": self.best,
                 "order": self.parts.fingerprint, "micro_batch": self.parts.micro_batch,
                 "bad_samples": self.bad_samples.state(),
                 **self.parts.stepper.state()}
        self.store.save(self.step, self.model, state, config_yaml(self.cfg))
        self.saved_step = self.step

    # --- evaluating -----------------------------------------------------------------------------------------------
    def _validate_if_due(self, after_resume: bool = False) -> None:
        """Validate the present step, unless that is done; the first split's `agg_metrics` chooses the best."""
        if not self.parts.bounds.validates(self.step, self.run) or self.validated_step == self.step:
            return
        metrics = self._evaluate_splits(self.run.valid_splits)
        self.validated_step = self.step
        first = self.run.valid_splits[0]
        value = metrics[first].get(AGGREGATE)
        if value is not None and value == value and (self.best is None or value > self.best["metric"]):
            self.best = {"step": self.step, "metric": value, "split": first}
            self._save()
        elif after_resume:
            self._save()

    def _evaluate_splits(self, splits: Iterable[str],
                         checkpoint_step: int | None = None) -> dict[str, dict[str, float]]:
        """Metrics by split. Finished batches are kept until all splits are through."""
        with self.watch.answering(EVALUATION_ANSWER):
            metrics = {split: self._evaluate_split(split, self.step, checkpoint_step) for split in splits}
        self.evaluator.discard_checkpoints()
        return metrics

    def _evaluate_split(self, split: str, step: int, checkpoint_step: int | None = None) -> dict[str, float]:
        measured = step if checkpoint_step is None else checkpoint_step
        scores = self.evaluator.split(self._having(split), split, measured)  # draws depend on the weights' step alone
        epoch = self._parts.bounds.epoch(step) if self._parts else 0
        extra = {} if measured == step else {"checkpoint_step": measured}
        self.tracker.record({"step": step, "epoch": epoch, "split": split, **extra, **scores})
        problem = self.evaluator.write(split, measured, scores, self.weights(measured)) if distributed.is_main() else ""
        if self.run.evaluate and (problem := distributed.broadcast_object(problem)):
            raise DataError(problem)
        if problem:  # a training goes on; what it can still write is worth more
            self.tracker.say(problem)
        return scores

    def _test(self) -> dict[str, dict[str, float]]:
        if not self.run.test_splits:
            return {}
        self._testing, measured = True, self.step
        if self.best is not None and self.best["step"] != self.step:
            measured = self.best["step"]
            checkpointing.load_weights(self.store.path(measured), self.model)
            self.tracker.say(f"testing the best checkpoint, {self.store.path(measured)} "
                             f"({self.best['split']} {AGGREGATE} {self.best['metric']:.4g})")
        return self._evaluate_splits(self.run.test_splits, measured)

    def _having(self, split: str) -> dict[str, Any]:
        return {name: splits[split] for name, splits in self.datasets.items() if split in splits}

    def _check_splits(self, wanted: Sequence[str], key: str) -> None:
        present = {split for splits in self.datasets.values() for split in splits}
        for split in wanted:
            if split not in present:
                raise ConfigError(f"run.{key}: no data set has a split {split!r}; {did_you_mean(split, present)}")

    def _introduce(self) -> None:
        parts = self.parts
        self.tracker.say(parameter_table(self.model.count_parameters()))
        begin = f"resuming after step {self.step} of" if self.resumed_from else "training"
        precision = str(self.precision.dtype).removeprefix("torch.")
        self.tracker.say(
            f"{begin} {parts.bounds.total} steps of {parts.order.global_batch} images ({distributed.world_size()} "
            f"processes x {self.run.batch_size_train} x {self.run.accum_grad_iters}) on {self.device.type} in "
            f"{precision}; log: {self.run_dir / 'log.jsonl'}")
        for note in resume.accumulation_notes(parts.micro_batch, self.run.accum_grad_iters,
                                              self.model.in_batch_negatives):
            self.tracker.say(note)


def config_yaml(cfg: Config) -> str:
    """The configuration as YAML text that runs again, without notes and provenance; interpolations stay as written."""
    sections = asdict(cfg)
    for path, text in cfg.as_written.items():
        section = reduce(lambda tree, key: tree.get(key) or {}, path[:-1], sections)
        if path[-1] in section:
            section[path[-1]] = text
    kept = {key: sections[key] for key in ("model", "preprocess", "datasets", "run", "imports") if sections.get(key)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=10_000)


@registry.register_runner("runner_base")
class EpochRunner(Runner):
    """`max_epoch` passes over the training data; saves and validates every so many epochs."""

    def bounds(self, steps_per_epoch: int) -> Bounds:
        """See `bounds.by_epochs`."""
        return bounds.by_epochs(self.run, steps_per_epoch)


@registry.register_runner("runner_iter")
class IterationRunner(Runner):
    """`max_iters` optimizer steps; saves and validates every so many inner epochs of `iters_per_inner_epoch` steps."""

    def bounds(self, steps_per_epoch: int) -> Bounds:
        """See `bounds.by_iterations`."""
        return bounds.by_iterations(self.run, steps_per_epoch)
