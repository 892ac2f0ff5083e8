"""The evaluations of a run: splits scored, their results written, and a line about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lavis_lite import distributed
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.evaluation.evaluator import Evaluator
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
        self.context, self.run, self.tracker = context, context.config.run, context.tracker
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
                weights = self.describe_weights(measured)
                problem = self.evaluator.write(split, measured, scores, weights) if distributed.is_main() else ""
                if self.run.evaluate and (problem := distributed.broadcast_object(problem)):
                    raise DataError(problem)
                if problem:  # a training continues; what it can still write is worth more
                    self.tracker.log(problem)
                on_scores(split, scores)
                found[split] = scores
        self.evaluator.discard_checkpoints()
        return found
