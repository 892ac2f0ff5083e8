"""A toy experiment, milliseconds per step: a small network with dropout, a frozen layer and a vision-like stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite import distributed
from lavis_lite.config.schema import Config, DatasetConfig, ModelConfig, PreprocessConfig, RunConfig
from lavis_lite.models.base import BaseModel, freeze
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.runners.runner import EpochRunner, IterationRunner, Runner
from lavis_lite.tasks.base import BaseTask, Row
from lavis_lite.tracking.tracker import JsonlLog, Tracker, read

WIDTH = 6
TIMES = ("images_per_second", "data_wait", "peak_memory_gib")
"""what a training record tells that differs from run to run by nature"""


@dataclass
class ToyOutput(ModelOutput):
    loss_fit: Tensor | None = None
    loss_size: Tensor | None = None


class ToyModel(BaseModel):
    """frozen -> hidden (dropout) -> out; `scale` is 0-dim and `tokens` 3-dim, as in the real models."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frozen = freeze(nn.Linear(WIDTH, WIDTH))
        self.hidden = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout))
        self.out = nn.Linear(WIDTH, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.tokens = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.register_buffer("seen", torch.zeros(()))
        for parameter in self.parameters():
            if parameter.ndim in (1, 2):
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    @classmethod
    def from_config(cls, cfg: Any) -> ToyModel:
        return cls()

    def forward(self, samples: dict[str, Any]) -> ToyOutput:
        if self.training:
            self.seen += 1
        hidden = self.hidden(self.frozen(samples["image"])) + self.tokens.mean(dim=(0, 1))
        fit = (self.out(hidden).squeeze(-1) * self.scale - samples["target"]).square().mean()
        size = 0.01 * hidden.square().mean()
        return ToyOutput(loss=fit + size, loss_fit=fit, loss_size=size)

    def layer_scale(self, name: str, decay: float) -> float:
        return decay ** 2 if name.startswith("hidden") else 1.0


class ExactModel(ToyModel):
    """The same in float64, for runs that equal each other but for the order of sums."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__(dropout, seed)
        self.double()

    def forward(self, samples: dict[str, Any]) -> ToyOutput:
        return super().forward({**samples, "image": samples["image"].double(), "target": samples["target"].double()})


class ToyData:
    """Numbered rows that are a function of their index; `nan_rows` have a target that is not a number."""

    def __init__(self, size: int, nan_rows: frozenset[int] = frozenset()) -> None:
        generator = torch.Generator().manual_seed(size)
        self.image = torch.randn(size, WIDTH, generator=generator)
        self.target = self.image.sum(1).sin()
        for row in nan_rows:
            self.target[row] = float("nan")

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image[index], "target": self.target[index], "index": index}


class ToyTask(BaseTask):
    """Scores a split by its negative mean squared error, and counts the rows it was given."""

    def predict(self, model: Any, samples: dict[str, Any]) -> list[Row]:
        assert not model.training and not torch.is_grad_enabled() and distributed.world_size() == 1
        image = samples["image"].to(model.scale.dtype)
        hidden = model.hidden(model.frozen(image)) + model.tokens.mean(dim=(0, 1))
        guess = model.out(hidden).squeeze(-1) * model.scale
        errors = (guess - samples["target"]).square().tolist()
        return [{"id": index, "error": error} for index, error in zip(samples["index"].tolist(), errors, strict=True)]

    def score(self, model: Any, rows: list[Row], dataset: Any, split: str) -> dict[str, float]:
        every = sorted((row for part in distributed.all_gather_object(rows) for row in part), key=lambda row: row["id"])
        mean = sum(row["error"] for row in every) / len(every)
        return {"error": mean, "rows": len(every), "distinct": len({row["id"] for row in every}), "agg_metrics": -mean}


@dataclass
class Toy:
    """What a toy run is made of; `build` makes its runner."""

    run_dir: Path
    run: dict[str, Any] = field(default_factory=dict)
    dropout: float = 0.1
    train_size: int = 40
    nan_rows: frozenset[int] = frozenset()
    model_class: type[ToyModel] = ToyModel
    task_class: type[ToyTask] = ToyTask

    def config(self) -> Config:
        settings = {"max_iters": 10, "batch_size_train": 4, "batch_size_eval": 3, "log_freq": 1, "init_lr": 0.01,
                    "num_workers": 0, "device": "cpu", "tensorboard": False, "save_freq": 0, "runner": "runner_iter"}
        return Config(ModelConfig(), PreprocessConfig(), {"toy": DatasetConfig()}, RunConfig(**(settings | self.run)))

    def build(self, tracker: Tracker | None = None) -> Runner:
        config = self.config()
        kind = EpochRunner if config.run.runner == "runner_base" else IterationRunner
        if tracker is None:
            tracker = Tracker([JsonlLog(self.run_dir / "log.jsonl")] if distributed.is_main() else [])
        data = {"toy": {"train": ToyData(self.train_size, self.nan_rows), "val": ToyData(11), "test": ToyData(7)}}
        return kind(config, self.task_class(config.run), self.model_class(self.dropout), data, self.run_dir,
                    tracker=tracker)


def weights(runner: Runner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The log of a run without `TIMES`."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read(run_dir / "log.jsonl")]
