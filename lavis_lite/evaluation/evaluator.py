"""Evaluation of a split: each batch on one rank, all predictions scored by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_lite import distributed
from lavis_lite.config.schema import Config
from lavis_lite.datasets.loading.loader import PendingBatches
from lavis_lite.datasets.loading.policy import BadSampleAccount
from lavis_lite.datasets.protocols import Hashed, MapDataset
from lavis_lite.device import Precision, seed_position, to_device
from lavis_lite.errors import ConfigError, ContractError, DataError, TextTooLongError, did_you_mean
from lavis_lite.evaluation.results import Evaluation, where_unscored, write_predictions, write_reports, write_result
from lavis_lite.evaluation.resume import EvalCheckpoint, EvalProgress, EvaluationStopped, eval_fingerprint
from lavis_lite.io import disk
from lavis_lite.models.language.contract import language_model_of
from lavis_lite.tasks.base import BaseTask, ProgressHandle, Row
from lavis_lite.tasks.config import Submission
from lavis_lite.tasks.writing import without_rows
from lavis_lite.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

AGGREGATE = "agg_metrics"
Scores = dict[str, float]
Datasets = Mapping[str, Mapping[str, Any]]
"""data set name -> split -> data set"""


class Evaluator:
    """Evaluates splits of all data sets that have them.

    Args:
        task: predicts and scores.
        model: the bare model. It is put into eval mode, and back into its earlier mode afterwards.
        cfg: the whole configuration.
        device, precision: on which device and in which dtype the model runs.
        loader: `(dataset, run_cfg, rank, world_size, done) -> batches`, each batch on exactly one rank, with a
            `PendingBatches` as their `batch_sampler`.
        bad_samples: counts samples that could not be read.
        run_dir: the run folder; unfinished evaluations are saved in it.
        tracker: shows the bar and messages.
        stop_code: returns the exit code of a pending signal; 0: no signal.
        weights: optimizer steps -> what the weights are then, in one line; "": unknown.

    Attributes:
        predictions: by data set, of the split evaluated last, if the task has any.
        reports: likewise the samples that the task reports; on rank 0 only.
    """

    def __init__(self, task: BaseTask, model: BaseModel, cfg: Config, device: torch.device, precision: Precision,
                 loader: Callable[..., Any], bad_samples: BadSampleAccount, run_dir: Path, tracker: Tracker,
                 stop_code: Callable[[], int] = lambda: 0, weights: Callable[[int], str] = lambda step: "") -> None:
        self.task, self.model, self.cfg, self.run = task, model, cfg, cfg.run
        self.device, self.precision, self.loader = device, precision, loader
        self.bad_samples, self.run_dir, self.tracker = bad_samples, Path(run_dir), tracker
        self.stop_code, self.weights = stop_code, weights
        self.predictions: dict[str, list[Row] | Submission] = {}
        self.reports: dict[str, Evaluation] = {}
        self._checkpoints: list[EvalCheckpoint] = []
        self._part: BaseTask = task
        """evaluates the present data set"""
        if (writer := language_model_of(model)) is not None:
            writer.at_once, writer.fixed_cache = self.run.decode_at_once, self.run.fixed_cache

    def splits(self, datasets: Datasets, splits: Iterable[str], step: int, epoch: int = 0,
               weights_of: int | None = None,
               on_scores: Callable[[str, Scores], None] = lambda split, scores: None) -> dict[str, Scores]:
        """Scores by split, written and logged. Finished batches are kept until all splits are through.

        Args:
            datasets: data set name -> split -> data set.
            splits: names.
            step: optimizer steps done.
            epoch: for the records.
            weights_of: step of the weights in the model; None: `step`.
            on_scores: called after each split.

        Raises:
            DataError: the results of an evaluation cannot be written. A training only logs that.
            EvaluationStopped: as in `split`.
        """
        measured = step if weights_of is None else weights_of
        found = {}
        for split in splits:
            own = {name: parts[split] for name, parts in datasets.items() if split in parts}
            scores = self.split(own, split, measured)  # draws depend only on the weights' step
            extra = {} if measured == step else {"checkpoint_step": measured}
            self.tracker.record({"step": step, "epoch": epoch, "split": split, **extra, **scores})
            problem = self.write(split, measured, scores, self.weights(measured)) if distributed.is_main() else ""
            if self.run.evaluate and (problem := distributed.broadcast_object(problem)):
                raise DataError(problem)
            if problem:  # a training continues; what it can still write is worth more
                self.tracker.log(problem)
            on_scores(split, scores)
            found[split] = scores
        self.discard_checkpoints()
        return found

    @torch.no_grad()
    def split(self, datasets: Mapping[str, Any], split: str, step: int) -> dict[str, float]:
        """Metrics of one split, equal on all ranks.

        The metrics of several data sets are named `<data set>/<metric>`, and `agg_metrics` is the mean. Of several
        data sets, those that the task cannot evaluate are left out (captions mixed into the training of answers).

        Args:
            datasets: data sets by name, those that have this split.
            split: its name.
            step: optimizer steps done; seeds what a model draws.

        Raises:
            EvaluationStopped: a signal came; finished batches are kept and are not computed again.
        """
        self.bad_samples.share(step=step)  # those of the training, before those of the evaluation
        was_training, self.predictions, self.reports = self.model.training, {}, {}
        fitting = {name: dataset for name, dataset in datasets.items() if self.task.takes(dataset)}
        self.model.eval()
        try:
            scores = {name: self._one(name, dataset, split, step) for name, dataset in (fitting or datasets).items()}
        finally:
            self.model.train(was_training)
        return _merged(scores)

    def write(self, split: str, step: int, scores: Mapping[str, float], weights: str) -> str:
        """Log and write the results of the newest split; why that cannot be done, or "". Rank 0 only."""
        problem = unscored = ""
        try:
            write_result(self.run_dir, split, step, scores, weights)
            paths = write_predictions(self.run_dir, split, step, self.predictions)
            unscored = where_unscored(scores, self.predictions, paths)
        except OSError as error:
            problem = disk.cannot_write(self.run_dir / "results", error, what=f"the results of {split}")
        task = self.task if any("/" in name for name in scores) else self._part
        self.tracker.log(f"step {step}  {split}: {task.summary(dict(scores))}{unscored}")
        if not problem:
            write_reports(self.cfg, self.run_dir, split, step, self.reports, weights, self.tracker.log)
        return problem

    def discard_checkpoints(self) -> None:
        """Remove what a stopped evaluation would resume from, after the results are written. Collective.

        Call it after all splits of one round: if a round is killed, none of its splits is then computed again.
        """
        distributed.barrier()  # rank 0 has written the results
        for checkpoint in self._checkpoints:
            checkpoint.remove()
        self._checkpoints = []

    def _one(self, name: str, dataset: MapDataset, split: str, step: int) -> dict[str, float]:
        task = self._part = self.task.part_for(dataset)
        task.before_evaluation(dataset, split)
        evaluated = task.evaluated(dataset)
        progress = task.progress = self._progress(name, evaluated, split, step)
        try:
            rows = self._predict(evaluated, split, step, progress)
            progress.stop_if_requested()
            self.bad_samples.share(step=step, split=split)
            return self._score(name, dataset, split, rows)
        except EvaluationStopped:
            self.bad_samples.forget()
            raise
        finally:
            task.progress = ProgressHandle()
            progress.close()

    def _progress(self, name: str, dataset: MapDataset, split: str, step: int) -> EvalProgress:
        fingerprint: dict[str, Any] = {}
        if distributed.is_main():
            content = dataset.content_hash() if isinstance(dataset, Hashed) else None
            fingerprint = eval_fingerprint(self.cfg, self.model, name, len(dataset), split=split, step=step, **{
                "content of the rows": content, "data set": name, "device": self.device.type,
                "precision": str(self.precision.dtype)})
        checkpoint = EvalCheckpoint(self.run_dir, f"{split}_{name}_step{step}",
                                    distributed.broadcast_object(fingerprint), self.run.evaluate, distributed.rank())
        progress = EvalProgress(checkpoint, self.run.resume_evaluation, self.tracker, f"{split} {name}", self.stop_code)
        progress.run_dir, progress.step = self.run_dir, step
        if progress.writable:  # else the files are another process's
            self._checkpoints.append(checkpoint)
        return progress

    def _predict(self, dataset: MapDataset, split: str, step: int, progress: EvalProgress) -> list[Row]:
        """This rank's rows; on rank 0 also those that an earlier try finished.

        A pending signal on this rank ends the loop early; the caller then asks the other ranks.
        """
        loader = self.loader(dataset, self.run, distributed.rank(), distributed.world_size(), done=progress.done)
        plan: PendingBatches = loader.batch_sampler
        rows: list[Row] = []
        for _, entry in sorted(progress.completed.items()):
            self.bad_samples.add(entry["bad"], entry["samples"])
            rows += entry["rows"]
        if plan.done_samples:
            self.tracker.log(f"{progress.title}: {plan.done_samples:,} of {plan.samples:,} samples were finished "
                             "before")
        progress.begin("", plan.samples, "samples", plan.done_samples)
        with closing(iter(loader)) as batches:
            for number, batch in zip(plan.numbers, batches, strict=True):
                if progress.stop_requested():
                    break
                usable = self.bad_samples.take(batch)
                seed_position(self.run.seed, split, step, number, 0)
                found: list[Row] = []
                if usable:
                    with distributed.local(), self.precision.autocast():
                        found = self._predict_batch(dataset, to_device(batch, self.device))
                bad, samples = self.bad_samples.newest
                if self._part.gathers_rows:
                    check_ids(self.run.task, found)
                    progress.save_batch(number, found, bad, samples)
                rows += found
                progress.advance(samples)
        self.tracker.end()
        return rows

    def _predict_batch(self, dataset: MapDataset, batch: dict[str, Any]) -> list[Row]:
        """The task's rows of a batch. A sample with a text too long for the model counts as a bad sample."""
        try:
            return self._part.predict(self.model, batch)
        except TextTooLongError as error:
            self.bad_samples.too_long(dataset, {int(batch["index"][row]): size for row, size in error.rows.items()},
                                      error)
            rest = without_rows(batch, error.rows)
            return self._predict_batch(dataset, rest) if rest else []

    def _score(self, name: str, dataset: MapDataset, split: str, rows: list[Row]) -> dict[str, float]:
        task = self._part
        if task.gathers_rows:
            rows = gathered(rows)
            predictions = task.predictions(rows, dataset)
            if predictions is not None:
                self.predictions[name] = predictions
        with self.precision.autocast():
            scores = task.score(self.model, rows, dataset, split)
        samples = task.report(rows, dataset, split) if distributed.is_main() else None
        if samples is not None:
            with self.precision.autocast(), distributed.local():
                samples = task.illustrated(self.model, rows, dataset, samples)
            self.reports[name] = Evaluation(scores, samples)
        return scores


def check_splits(datasets: Datasets, splits: Sequence[str], key: str) -> None:
    """Refuse splits that no data set has.

    Raises:
        ConfigError: names the key of the run section and the nearest split.
    """
    present = {split for parts in datasets.values() for split in parts}
    for split in splits:
        if split not in present:
            raise ConfigError(f"run.{key}: no data set has a split {split!r}; {did_you_mean(split, present)}")


def check_ids(task: str, rows: list[Row]) -> None:
    """Check that each row names its sample.

    Raises:
        ContractError: a row without `id`.
    """
    for row in rows:
        if "id" not in row:
            raise ContractError(f"run.task={task}: each row that the task's `predict` returns needs an `id`, the "
                                "number or name of its sample. One row has only: "
                                f"{', '.join(map(str, row)) or 'nothing'}.")


def gathered(rows: list[Row]) -> list[Row]:
    """The rows of all ranks, sorted by id, numbers before names. Collective.

    Raises:
        DataError: two rows have the same id.
    """
    every = [row for part in distributed.all_gather_object(rows) for row in part]
    every.sort(key=lambda row: (isinstance(row["id"], str), row["id"]))
    for one, two in zip(every, every[1:], strict=False):
        if one["id"] == two["id"]:
            raise DataError(f"the evaluation split has the id {one['id']!r} twice; ids in its files must differ.")
    return every


def _merged(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    merged = {f"{name}/{key}": value for name, one in scores.items() for key, value in one.items()}
    totals = [one[AGGREGATE] for one in scores.values() if AGGREGATE in one]
    return {**merged, AGGREGATE: sum(totals) / len(totals)} if totals else merged
