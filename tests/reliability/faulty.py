"""A project outside the package, milliseconds per step, in which something goes wrong on request.

FAULT is `<place>:<cause>`; it happens on rank FAULT_RANK (default 0), once FAULT_AFTER (a glob) matches something, and
only if the file FAULT_MARK can be made, which holds the time of it.
"""

from __future__ import annotations

import glob
import numbers
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavis_lite import distributed
from lavis_lite.config.schema import DatasetConfig, ModelConfig, RunConfig
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.errors import DataError
from lavis_lite.models.base import BaseModel
from lavis_lite.models.outputs import ModelOutput
from lavis_lite.registry import registry
from lavis_lite.tasks.base import BaseTask

WIDTH = 4
PLACES = ("data set", "collate", "model", "loss", "optimizer", "save", "evaluation", "start")
SHM = "unable to allocate shared memory(shm) for file </torch_7_7_7>: No space left on device (28)"
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"


class Odd(numbers.Number):
    """A number that no tensor can be made of."""

    __hash__ = None  # type: ignore[assignment]


def fires(place: str) -> str:
    """The cause, if something goes wrong here and now; else an empty text."""
    wanted, _, cause = os.environ.get("FAULT", "").partition(":")
    if wanted != place or os.environ.get("RANK", "0") != os.environ.get("FAULT_RANK", "0"):
        return ""
    if not glob.glob(os.environ["FAULT_AFTER"]):
        return ""
    try:
        descriptor = os.open(os.environ["FAULT_MARK"], os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return ""
    os.write(descriptor, str(time.time()).encode())
    os.close(descriptor)
    return cause


def happen(place: str) -> None:
    """Let it go wrong, if it shall."""
    cause = fires(place)
    if not cause:
        return
    if cause in ("kill", "segfault"):
        os.kill(os.getpid(), signal.SIGKILL if cause == "kill" else signal.SIGSEGV)
    elif cause == "hang":
        time.sleep(600)
    elif cause == "nothing":
        return
    elif cause == "own":
        raise DataError("injected: this row is wrong")
    elif cause == "memory":
        raise MemoryError
    elif cause == "cuda":
        raise torch.OutOfMemoryError(CUDA)
    elif cause == "shm":
        raise RuntimeError(SHM)
    elif cause == "files":
        raise OSError(24, "Too many open files")
    else:
        raise KeyError("injected")


@dataclass
class FaultyModelConfig(ModelConfig):
    load_pretrained: bool = False


@registry.register_model("faulty")
class FaultyModel(BaseModel):
    """One linear layer after dropout; the cause of a fault of its loss is a number that multiplies it."""

    config_class = FaultyModelConfig

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(float(os.environ.get("DROPOUT", "0")))
        self.layer = nn.Linear(WIDTH, 1)

    @classmethod
    def from_config(cls, cfg: Any) -> FaultyModel:
        happen("start")
        return cls()

    def forward(self, samples: dict[str, Any]) -> ModelOutput:
        happen("model")
        guess = self.layer(self.dropout(samples["image"])).squeeze(-1)
        return ModelOutput(loss=(guess - samples["target"]).square().mean() * float(fires("loss") or 1))


class FaultyData(BaseDataset):
    """Numbered rows that are a function of their index; a training adds noise to them."""

    sample_keys = ("image", "target", "index")

    def __init__(self, size: int) -> None:
        self.image = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.image)

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        happen("data set")
        number: Any = Odd() if fires("collate") else index
        noise = torch.tensor([rng.gauss(0.0, 0.1) for _ in range(WIDTH)])
        return {"image": self.image[index] + noise, "target": self.image[index].sum(), "index": index, "number": number,
                "padding": torch.zeros(int(os.environ.get("PADDING", "1")))}


@registry.register_builder("faulty")
class FaultyBuilder(BaseDatasetBuilder):
    config_class = DatasetConfig
    sample_keys = FaultyData.sample_keys

    def splits(self) -> list[str]:
        return ["train", "test"]

    def missing_files(self, splits: Any = None) -> list[str]:
        return []

    def build(self, split: str, training: bool) -> Any:
        return FaultyData({"train": 40, "test": 12}[split])


@registry.register_task("faulty")
class FaultyTask(BaseTask):
    """Negative squared error of a split."""

    config_class = RunConfig

    def train_step(self, model: Any, samples: dict[str, Any]) -> Any:
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return super().train_step(model, samples)

    def predict(self, model: Any, samples: dict[str, Any]) -> list[dict[str, Any]]:
        time.sleep(float(os.environ.get("BATCH_SECONDS", "0")))
        happen("evaluation")
        errors = (model.layer(samples["image"]).squeeze(-1) - samples["target"]).square().tolist()
        return [{"id": index, "error": error} for index, error in zip(samples["index"].tolist(), errors, strict=True)]

    def score(self, model: Any, rows: list[dict[str, Any]], dataset: Any, split: str) -> dict[str, float]:
        every = [row["error"] for part in distributed.all_gather_object(rows) for row in part]
        return {"error": sum(every) / len(every), "agg_metrics": -sum(every) / len(every)}


def _break(owner: Any, name: str, place: str) -> None:
    """Let a function of a library fail where it is told to."""
    works = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        happen(place)
        return works(*args, **kwargs)

    setattr(owner, name, broken)


if os.environ.get("FAULT", "").startswith("optimizer"):
    _break(torch.optim.AdamW, "step", "optimizer")
if os.environ.get("FAULT", "").startswith("save"):
    _break(torch, "save", "save")


CONFIG = """
imports: [tests.reliability.faulty]
model: {{arch: faulty}}
datasets: {{faulty: {{builder: faulty}}}}
run:
  task: faulty
  runner: runner_iter
  max_iters: {steps}
  batch_size_train: 2
  batch_size_eval: 2
  save_every: 2
  log_freq: 1
  device: cpu
  report: false
  allow_untrained: true
  tensorboard: false
  test_splits: [test]
  dist_timeout_minutes: 1
  output_dir: {output}
"""


def write_config(folder: Path, steps: int = 60) -> Path:
    """A run of this project in a folder; its output goes to `folder/out`."""
    path = folder / "faulty.yaml"
    path.write_text(CONFIG.format(steps=steps, output=folder / "out"), encoding="utf-8")
    return path
