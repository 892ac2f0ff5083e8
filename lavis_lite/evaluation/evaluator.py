"""Evaluation of a split: whole batches dealt to ranks, predictions scored by all ranks together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_lite import distributed
from lavis_lite.config.schema import Config
from lavis_lite.datasets.loading.remaining import Remaining
from lavis_lite.errors import DataError, TextTooLongError
from lavis_lite.evaluation.fingerprint import of_things
from lavis_lite.evaluation.journal import Journal
from lavis_lite.evaluation.progress import Desk, EvaluationStopped
from lavis_lite.io import atomic
from lavis_lite.report.files import Evaluation
from lavis_lite.runners.bad_samples import BadSamples
from lavis_lite.runners.precision import Precision
from lavis_lite.runners.step import seed_position, to_device
from lavis_lite.tasks.base import BaseTask, LongWork, Row
from lavis_lite.tasks.long_texts import without_rows
from lavis_lite.tasks.submission import Submission, lines
from lavis_lite.tracking.tracker import Tracker

if TYPE_CHECKING:
    from lavis_lite.models.base import BaseModel

AGGREGATE = "agg_metrics"


class Evaluator:
    """Evaluates splits of all data sets that have them.

    Args:
        task: predicts and scores.
        model: the bare model; it is in eval mode during evaluation and as it was afterwards.
        cfg: the whole configuration.
        device, precision: where and in which dtype.
        loader: `(dataset, run_cfg, rank, world_size, done) -> batches`, each batch on exactly one rank, with a
            `Remaining` as their `batch_sampler`.
        bad_samples: takes note of samples that could not be read.
        run_dir: the run folder; journals of unfinished evaluations are in it.
        tracker: shows the bar.
        wish: exit code of a pending signal, 0 while there is none.

    Attributes:
        predictions: of the split evaluated last, by data set, where the task has any.
        reports: likewise what the task tells of single samples; on rank 0 only.
    """

    def __init__(self, task: BaseTask, model: BaseModel, cfg: Config, device: torch.device, precision: Precision,
                 loader: Callable[..., Any], bad_samples: BadSamples, run_dir: Path, tracker: Tracker,
                 wish: Callable[[], int] = lambda: 0) -> None:
        self.task, self.model, self.cfg, self.run = task, model, cfg, cfg.run
        self.device, self.precision, self.loader = device, precision, loader
        self.bad_samples, self.run_dir, self.tracker, self.wish = bad_samples, Path(run_dir), tracker, wish
        self.predictions: dict[str, list[Row] | Submission] = {}
        self.reports: dict[str, Evaluation] = {}
        self._journals: list[Journal] = []

    @torch.no_grad()
    def split(self, datasets: Mapping[str, Any], split: str, step: int) -> dict[str, float]:
        """Metrics of one split, equal on all ranks.

        With several data sets their metrics are told apart as `<data set>/<metric>`, and `agg_metrics` is the mean. Of
        several, those that the task cannot evaluate (captions mixed into the training of answers) are left out.

        Args:
            datasets: data sets by name, those that have this split.
            split: its name.
            step: optimizer steps done; seeds whatever a model draws.

        Raises:
            EvaluationStopped: a signal came; what is finished is kept and is not done again.
        """
        self.bad_samples.share(step=step)  # training's own, before those of the evaluation
        was_training, self.predictions, self.reports = self.model.training, {}, {}
        fitting = {name: dataset for name, dataset in datasets.items() if self.task.takes(dataset)}
        self.model.eval()
        try:
            scores = {name: self._one(name, dataset, split, step) for name, dataset in (fitting or datasets).items()}
        finally:
            self.model.train(was_training)
        return _merged(scores)

    def forget(self) -> None:
        """Remove the journals of the evaluations since the last call: their results are written.

        Asked for when all splits of one round are through, so that of a round that is killed none is done again.
        Collective.
        """
        distributed.barrier()  # rank 0 has written the results
        for journal in self._journals:
            journal.remove()
        self._journals = []

    def _one(self, name: str, dataset: Any, split: str, step: int) -> dict[str, float]:
        self.task.before_evaluation(dataset, split)
        evaluated = self.task.evaluated(dataset)
        desk = self._desk(name, len(evaluated), split, step)
        self.task.work = desk
        try:
            rows = self._predict(evaluated, split, step, desk)
            if code := desk.agreed():
                desk.stop(code)
            self.bad_samples.share(step=step, split=split)
            return self._score(name, dataset, split, rows)
        except EvaluationStopped:
            self.bad_samples.forget()
            raise
        finally:
            self.task.work = LongWork()
            desk.leave()

    def _desk(self, name: str, samples: int, split: str, step: int) -> Desk:
        facts = {"data set": name, "split": split, "step": step, "device": self.device.type,
                 "precision": str(self.precision.dtype)}
        parts = of_things(self.cfg, self.model, name, samples, **facts) if distributed.is_main() else {}
        journal = Journal(self.run_dir, f"{split}_{name}_step{step}", distributed.broadcast_object(parts),
                          self.run.evaluate, distributed.rank())
        desk = Desk(journal, self.run.resume_evaluation, self.tracker, f"{split} {name}", self.wish)
        desk.run_dir, desk.step = self.run_dir, step
        if desk.journal is not None:  # else the files are another process's
            self._journals.append(desk.journal)
        return desk

    def _score(self, name: str, dataset: Any, split: str, rows: list[Row]) -> dict[str, float]:
        if self.task.gathers_rows:
            rows = gathered(rows)
            predictions = self.task.predictions(rows, dataset)
            if predictions is not None:
                self.predictions[name] = predictions
        with self.precision.autocast():
            scores = self.task.score(self.model, rows, dataset, split)
        samples = self.task.report(rows, dataset, split) if distributed.is_main() else None
        if samples is not None:
            self.reports[name] = Evaluation(scores, samples)
        return scores

    def _predict(self, dataset: Any, split: str, step: int, desk: Desk) -> list[Row]:
        """This rank's rows, and on rank 0 those that were finished before.

        A pending signal ends the loop early; `_one` then asks the other ranks.
        """
        loader = self.loader(dataset, self.run, distributed.rank(), distributed.world_size(), done=desk.done)
        plan: Remaining = loader.batch_sampler
        rows = self._finished(desk)
        desk.told_before(plan.done_samples, plan.samples)
        desk.show(desk.title, plan.samples, plan.done_samples, "samples")
        with closing(iter(loader)) as batches:
            for number, batch in zip(plan.numbers, batches, strict=True):
                if self.wish():
                    break
                usable = self.bad_samples.take(batch)
                seed_position(self.run.seed, split, step, number, 0)
                found: list[Row] = []
                if usable:
                    with distributed.local(), self.precision.autocast():
                        found = self._fitting(dataset, to_device(batch, self.device))
                bad, samples = self.bad_samples.newest
                if self.task.gathers_rows:
                    check_ids(self.run.task, found)
                    desk.keep_batch(number, found, bad, samples)
                rows += found
                desk.advance(samples)
        desk.hide()
        return rows

    def _fitting(self, dataset: Any, batch: dict[str, Any]) -> list[Row]:
        """The task's rows of a batch; a sample whose text the model has no room for is a bad sample."""
        try:
            return self.task.predict(self.model, batch)
        except TextTooLongError as fault:
            self.bad_samples.too_long(dataset, {int(batch["index"][row]): size for row, size in fault.rows.items()},
                                      fault)
            rest = without_rows(batch, fault.rows)
            return self._fitting(dataset, rest) if rest else []

    def _finished(self, desk: Desk) -> list[Row]:
        """Rows of the batches that were finished before, their unusable samples counted."""
        rows: list[Row] = []
        for _, entry in sorted(desk.finished.batches.items()):
            self.bad_samples.add(entry["bad"], entry["samples"])
            rows += entry["rows"]
        return rows


def check_ids(task: str, rows: list[Row]) -> None:
    """Refuse what a task's `predict` gave if a row of it names no sample.

    Raises:
        DataError: a row without `id`.
    """
    for row in rows:
        if "id" not in row:
            raise DataError(f"run.task={task}: each row that the task's `predict` returns needs an `id`, the number or "
                            f"name of its sample. One row has only: {', '.join(map(str, row)) or 'nothing'}.")


def gathered(rows: list[Row]) -> list[Row]:
    """The rows of all ranks, each id once, numbers before names and both in their order. Collective.

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


def write_predictions(run_dir: Path, split: str, step: int,
                      predictions: Mapping[str, list[Row] | Submission]) -> list[Path]:
    """Write `results/<split>_step<N>_predictions.json`; several data sets: `..._<data set>_predictions.json` each.

    What goes to a server has that server's format, and its file name where there is one.
    """
    paths: list[Path] = []
    written: dict[Path, str] = {}
    for name, rows in predictions.items():
        middle = f"_{name}" if len(predictions) > 1 else ""
        if isinstance(rows, Submission):
            file, suffix, text = rows.name, rows.suffix, rows.text()
        else:
            file, suffix, text = "", ".json", lines(rows)
        usual = f"{split}_step{step}{middle}_predictions{suffix}"
        path = Path(run_dir) / "results" / (file or usual)
        if written.get(path, text) != text:  # another data set's has the name that the server wants
            path = path.with_name(usual)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)
        written[path] = text
        paths.append(path)
    return paths


def where_unscored(scores: Mapping[str, float], predictions: Mapping[str, list[Row] | Submission],
                   paths: Sequence[Path]) -> str:
    """Where the predictions are of data sets that were not scored, for the line about a split; "" where all were."""
    found: dict[Path, str] = {}
    for (name, rows), path in zip(predictions.items(), paths, strict=True):
        several = len(predictions) > 1
        if (f"{name}/predictions" if several else "predictions") in scores:
            found[path] = rows.told() if several and isinstance(rows, Submission) else ""
    return "".join(f" ({path}{told})" for path, told in found.items())


def write_result(run_dir: Path, split: str, step: int, scores: Mapping[str, float], weights: str = "") -> Path:
    """Write `results/<split>_step<N>.json` and return its path.

    Args:
        run_dir: folder of the run.
        split: that was evaluated.
        step: of the weights.
        scores: by name.
        weights: where the weights come from, in one line; "": not known.
    """
    path = Path(run_dir) / "results" / f"{split}_step{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"weights": weights} if weights else {}
    content = {"split": split, "step": step, **known, "metrics": dict(scores)}
    atomic.write_text(path, json.dumps(content, indent=2) + "\n")
    return path
