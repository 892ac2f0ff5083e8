"""The end of a run that does not get better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.registry import registry
from lavis_lite.runners.hooks.base import Hook, RunContext


@registry.register_hook("early_stop")
class EarlyStop(Hook):
    """Ends the run, saved and tested as at its usual end, if a validation score has not improved for a while.

    Args:
        patience: validations without a better score after which the run ends.
        metric: name of the score.
        split: that is validated; null: the first of `run.valid_splits`.
        mode: whether a better score is larger ("max") or smaller ("min").
        min_delta: how much better a score must be to count.
    """

    def __init__(self, patience: int = 3, metric: str = "agg_metrics", split: str | None = None,
                 mode: Literal["max", "min"] = "max", min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ConfigError(f"run.hooks.early_stop.patience: must be above 0, not {patience}.")
        self.patience, self.metric, self.split, self.mode, self.min_delta = patience, metric, split, mode, min_delta
        self.best: float | None = None
        self.compared: Any = None
        """split, metric and mode of the scores so far"""
        self.since = 0

    def on_start(self, run: RunContext) -> None:
        """Refuse a split that is not validated: the run would never end early.

        Raises:
            ConfigError: naming the splits there are.
        """
        splits = run.config.run.valid_splits
        self.split = self.split or (splits[0] if splits else "")
        if self.split not in splits:
            raise ConfigError(f"run.hooks.early_stop: run.valid_splits has no split {self.split!r}; "
                              f"{did_you_mean(self.split, splits)}")
        compared = [self.split, self.metric, self.mode]
        if self.compared not in (None, compared):
            run.log(f"note: run.hooks.early_stop compared {' '.join(self.compared)} before, and begins anew.")
            self.best, self.since = None, 0
        self.compared = compared

    def after_evaluation(self, run: RunContext, split: str, scores: Mapping[str, float]) -> None:
        """Compare with the best score so far.

        Raises:
            ConfigError: the split has no such score.
        """
        if split != self.split or run.step >= run.last_step:
            return
        if self.metric not in scores:
            raise ConfigError(f"run.hooks.early_stop.metric: {split} has no score {self.metric!r}; "
                              f"{did_you_mean(self.metric, scores)}")
        value = scores[self.metric] * (1 if self.mode == "max" else -1)
        better = self.best is None or value > self.best + self.min_delta
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        if self.since >= self.patience:
            run.stop(f"early stop: {split} {self.metric} has not improved for {self.since} validations")

    def state(self) -> dict[str, Any]:
        """The best score, of what, and the validations since."""
        return {"best": self.best, "since": self.since, "compared": self.compared}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self.best, self.since = state["best"], state["since"]
        self.compared = state.get("compared")  # absent in checkpoints of earlier versions
