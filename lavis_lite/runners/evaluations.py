"""The evaluations of a run: splits scored, their results written, and a line about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.evaluation.evaluator import Evaluator, where_unscored, write_predictions, write_result
from lavis_lite.evaluation.reporting import write_reports
from lavis_lite.io import disk
from lavis_lite.runners.hooks.base import RunContext
from lavis_lite.runners.signals import EVALUATION_ANSWER, SignalWatch

Scores = dict[str, float]


class Evaluations:
    """Evaluates splits with whatever weights the model has.

    Args:
        context: of the run.
        evaluator: predicts and scores one split.
        watch: knows of signals.
        describe_weights: optimizer steps -> what the weights are then, in one line.
    """

    def __init__(self, context: RunContext, evaluator: Evaluator, watch: SignalWatch,
                 describe_weights: Callable[[int], str]) -> None:
        self.context, self.cfg, self.run = context, context.config, context.config.run
        self.run_dir, self.tracker = context.run_dir, context.tracker
        self.evaluator, self.watch, self.describe_weights = evaluator, watch, describe_weights

    def check(self, splits: Sequence[str], key: str) -> None:
        """Refuse splits that no data set has.

        Raises:
            ConfigError: names the key of the run section and the nearest split.
        """
        present = {split for splits in self.context.datasets.values() for split in splits}
        for split in splits:
            if split not in present:
                raise ConfigError(f"run.{key}: no data set has a split {split!r}; {did_you_mean(split, present)}")

    def splits(self, splits: Iterable[str], step: int, epoch: int = 0, weights_of: int | None = None,
               on_scores: Callable[[str, Scores], None] = lambda split, scores: None) -> dict[str, Scores]:
        """Scores by split. Finished batches are kept until all splits are through.

        Args:
            splits: names.
            step: optimizer steps done.
            epoch: for the records.
            weights_of: step of the weights in the model; None: `step`.
            on_scores: called after each split.
        """
        measured = step if weights_of is None else weights_of
        found = {}
        with self.watch.answering(EVALUATION_ANSWER):
            for split in splits:
                datasets = {name: parts[split] for name, parts in self.context.datasets.items() if split in parts}
                scores = self.evaluator.split(datasets, split, measured)  # draws depend on the weights' step alone
                extra = {} if measured == step else {"checkpoint_step": measured}
                self.tracker.record({"step": step, "epoch": epoch, "split": split, **extra, **scores})
                problem = self._write(split, measured, scores) if distributed.is_main() else ""
                if self.run.evaluate and (problem := distributed.broadcast_object(problem)):
                    raise DataError(problem)
                on_scores(split, scores)
                found[split] = scores
        self.evaluator.forget()
        return found

    def _write(self, split: str, step: int, scores: Mapping[str, Any]) -> str:
        """Write and log what an evaluation found; why files cannot be written, or ""."""
        where, problem, weights = "", "", self.describe_weights(step)
        try:
            write_result(self.run_dir, split, step, scores, weights)
            paths = write_predictions(self.run_dir, split, step, self.evaluator.predictions)
            where = where_unscored(scores, self.evaluator.predictions, paths)
        except OSError as error:
            problem = disk.cannot_write(self.run_dir / "results", error, what=f"the results of {split}")
        self.tracker.log(f"step {step}  {split}: {self.evaluator.task.summary(dict(scores))}{where}")
        if problem and not self.run.evaluate:  # a training goes on; what it can still write is worth more
            self.tracker.log(problem)
        elif not problem:
            write_reports(self.cfg, self.run_dir, split, step, self.evaluator.reports, weights, self.tracker.log)
        return problem
