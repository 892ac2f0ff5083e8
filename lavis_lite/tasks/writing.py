"""What tasks share that have a model write a text per sample: their run section, rows and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.controls import Control, Controlled
from lavis_lite.errors import ConfigError
from lavis_lite.tasks.base import BaseTask, Row

CONTROLS = {"none": "", "wrong_image": " with other samples' images", "blind": " with blank images"}


@dataclass
class WritingRunConfig(RunConfig):
    """The run section of tasks whose predictions are texts."""

    num_beams: int = 5
    """width of beam search; 1: greedy"""
    max_len: int = 30
    """of a text, tokens as LAVIS counts them"""
    min_len: int = 1
    length_penalty: float | None = None
    """a text's score is its log-probability / length ** length_penalty; absent: the model's default"""
    repetition_penalty: float | None = None
    """above 1 makes tokens already written less likely; absent: the model's default"""
    prompt: str | None = None
    """what the model reads; absent: the sample's own prompt, else the model's"""
    report_metric: bool = True
    """false: predictions are written and not scored"""
    control: Control = "none"
    """evaluate with other samples' images, or with blank ones: what is left of the score does not come from seeing"""


class WritingTask(BaseTask):
    """Predicts one text per sample; a row is {id, index, <text>}."""

    gathers_rows: ClassVar[bool] = True
    config_class: ClassVar[type[RunConfig]] = WritingRunConfig
    cfg: WritingRunConfig

    def __init__(self, cfg: WritingRunConfig) -> None:
        super().__init__(cfg)
        for key, least in (("num_beams", 1), ("max_len", 1), ("min_len", 0)):
            if getattr(cfg, key) < least:
                raise ConfigError(f"run.{key} must be at least {least}, not {getattr(cfg, key)}.")
        if cfg.min_len > cfg.max_len:
            raise ConfigError(f"run.min_len={cfg.min_len} is above run.max_len={cfg.max_len}.")
        if cfg.repetition_penalty is not None and cfg.repetition_penalty <= 0:
            raise ConfigError(f"run.repetition_penalty must be above 0, not {cfg.repetition_penalty}.")

    def evaluated(self, dataset: Any) -> Any:
        """The data set as `run.control` shows it."""
        return dataset if self.cfg.control == "none" else Controlled(dataset, self.cfg.control)

    def options(self) -> dict[str, float]:
        """Settings of generation that the run names and the model else decides."""
        given = {"length_penalty": self.cfg.length_penalty, "repetition_penalty": self.cfg.repetition_penalty}
        return {name: value for name, value in given.items() if value is not None}

    def unscored(self, rows: Sequence[Row]) -> dict[str, float]:
        """Metrics of a split that has nothing to compare with."""
        return {"predictions": float(len(rows))}

    def summary(self, scores: dict[str, float]) -> str:
        """Says so where nothing was scored, and which pictures were shown; several data sets have a line each."""
        if any("/" in name for name in scores):
            return by_dataset(scores) + CONTROLS[self.cfg.control]
        if "agg_metrics" in scores:
            return super().summary(scores) + CONTROLS[self.cfg.control]
        return (f"{scores['predictions']:.0f} predictions written, not scored (the split has no references, or the run "
                f"asks for no metric){CONTROLS[self.cfg.control]}")


def by_dataset(scores: Mapping[str, float]) -> str:
    """Scores `<data set>/<name>` -> a line for each data set, below their mean where there is one."""
    lines: dict[str, list[str]] = {}
    for key, value in scores.items():
        dataset, _, name = key.rpartition("/")
        if dataset and name != "agg_metrics":
            lines.setdefault(dataset, []).append(f"{name} {value:.4g}")
    mean = f"mean {scores['agg_metrics']:.4g}" if "agg_metrics" in scores else f"{len(lines)} data sets"
    return mean + "".join(f"\n  {dataset}: {', '.join(told)}" for dataset, told in lines.items())


def plain(values: Any) -> list[Any]:
    """A column of a batch as Python values: a tensor in one copy from the device, a list as it is."""
    return list(values.tolist() if isinstance(values, Tensor) else values)
