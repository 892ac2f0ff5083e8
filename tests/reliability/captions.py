"""A stage-2 project outside the package: a tiny random OPT learns captions of random pictures.

Its loss is a mean over tokens, so a step is the same however it is split. Every training process writes down which
samples, and which pixels of them, each of its micro-batches had: a line of `SEEN/<rank>-<process>.jsonl` each.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lavis_lite.config.schema import DatasetConfig, ModelConfig, RunConfig
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.models.blip2.llm import OPT, Blip2LLM
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.processors.image import BlipImageTrain
from lavis_lite.registry import registry
from lavis_lite.tasks.base import BaseTask
from tests.models.language.tiny import tiny
from tests.models.stage1_helpers import TINY, NumberTokenizer, PatchEncoder

SIZE, WORDS = 20, (1, 12, 2, 5, 1, 1, 9, 3)
"""samples; words of their captions, in turn"""


@dataclass
class CaptionerConfig(ModelConfig):
    load_pretrained: bool = False


@registry.register_model("tiny_captioner")
class Captioner(Blip2LLM):
    """A patch encoder, a Q-Former of four layers and an OPT of two."""

    config_class = CaptionerConfig
    defaults = OPT

    @classmethod
    def from_config(cls, cfg: Any) -> Captioner:
        torch.manual_seed(0)
        qformer = QFormer(TINY.__class__(**{**vars(TINY), "with_text": False, "with_lm_head": False}))
        return cls(PatchEncoder(), qformer, NumberTokenizer(), tiny("opt"), prompt="")


class Captions(BaseDataset):
    """Random pictures, augmented, with captions of 1 to 12 words."""

    sample_keys = ("image", "text_input", "index")

    def __init__(self) -> None:
        self.view = BlipImageTrain(4)

    def __len__(self) -> int:
        return SIZE

    def sample(self, index: int, rng: Any = None) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (12, 12, 3), generator=generator, dtype=torch.uint8)
        words = torch.randint(3, 60, (WORDS[index % len(WORDS)],), generator=generator).tolist()
        return {"image": self.view(Image.fromarray(pixels.numpy()), rng), "index": index,
                "text_input": " ".join(map(str, words))}


@registry.register_builder("tiny_captions")
class CaptionsBuilder(BaseDatasetBuilder):
    config_class = DatasetConfig
    sample_keys = Captions.sample_keys

    def splits(self) -> list[str]:
        return ["train"]

    def missing_files(self, splits: Any = None) -> list[str]:
        return []

    def build(self, split: str, training: bool) -> Any:
        return Captions()


@registry.register_task("tiny_captions")
class CaptionsTask(BaseTask):
    """Writes down what it is given; asks its own process to stop at micro-batch STOP_AT."""

    config_class = RunConfig

    def train_step(self, model: Any, samples: dict[str, Any]) -> Any:
        rows = [(index, hashlib.sha256(image.numpy().tobytes()).hexdigest())
                for index, image in zip(samples["index"].tolist(), samples["image"], strict=True)]
        path = Path(os.environ["SEEN"]) / f"{os.environ.get('RANK', '0')}-{os.getpid()}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rows) + "\n")
        if path.read_text(encoding="utf-8").count("\n") == int(os.environ.get("STOP_AT", "0")):
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().train_step(model, samples)


CONFIG = """
imports: [tests.reliability.captions]
model: {{arch: tiny_captioner}}
datasets: {{tiny_captions: {{builder: tiny_captions}}}}
run:
  task: tiny_captions
  runner: runner_iter
  max_iters: {steps}
  batch_size_train: {batch}
  accum_grad_iters: {accum}
  num_workers: {workers}
  init_lr: 1e-3
  log_freq: 1
  save_freq: 1000
  device: cpu
  tensorboard: false
  dist_timeout_minutes: 1
  output_dir: {output}
"""
