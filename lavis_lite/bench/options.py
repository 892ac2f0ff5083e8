"""What a benchmark is run with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from lavis_lite.bench.sizes import SIZES, Size
from lavis_lite.config.schema import RunConfig
from lavis_lite.device import Precision, pick_device
from lavis_lite.errors import ConfigError, did_you_mean

PEERS = {"stage1": ("plain",), "stage2": ("plain", "transformers"), "generate": ("transformers",),
         "retrieval": ("plain",), "loader": ("plain", "views")}
"""benchmark -> what it can be compared with"""
TRAINING = ("stage1", "stage2")
USERS = {"batch": ("stage1", "stage2", "generate"), "precision": TRAINING, "full": TRAINING, "instruct": ("stage2",),
         "workers": TRAINING, "images_from": ("loader", *TRAINING)}
"""option that some benchmarks have no use for -> those that have"""
FP32 = "fp32"
"""this package without autocast, as another peer of training steps in bf16"""


@dataclass(frozen=True)
class Options:
    """Settings of a benchmark.

    Attributes:
        what: a key of PEERS.
        against: peers; None: all of PEERS, or none if several ranks train.
        size, llm: a row of SIZES and one of its language models.
        batch: images per turn and rank; None: the size's own.
        steps, warmup: turns of each side that count, and those before.
        device: as `run.device`.
        precision: of training steps; auto: bf16 on a GPU, fp32 on a CPU. Other benchmarks compute in fp32.
        full: texts of 32 tokens, so that batches have no padding.
        instruct: stage 2 is InstructBLIP: its Q-Former reads the prompts too, of 5 to 32 tokens.
        workers: of a loader that training steps get their images from; None: images in memory.
        images_from: folder of JPEG files for `loader` and `workers`; None: generated ones.
        memory: also measure each side's peak memory, in a process of its own.
    """

    what: str
    against: tuple[str, ...] | None = None
    size: str = "medium"
    llm: str = "opt"
    batch: int | None = None
    steps: int = 6
    warmup: int = 1
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    full: bool = False
    instruct: bool = False
    workers: int | None = None
    images_from: str | None = None
    memory: bool = True

    @property
    def dimensions(self) -> Size:
        """Of the model."""
        return SIZES[self.size]

    @property
    def images(self) -> int:
        """Per turn and rank."""
        return self.dimensions.batch if self.batch is None else self.batch

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """The device of this process."""
        return pick_device(self.device, local_rank, "--device")

    def amp(self, device: torch.device) -> Precision:
        """The precision that the benchmark computes in."""
        on_gpu = device.type == "cuda" and self.what in TRAINING
        name = ("bf16" if on_gpu else "fp32") if self.precision == "auto" else self.precision
        return Precision.from_run(RunConfig(amp=name != "fp32", amp_dtype=name), device)

    def peers(self, ranks: int = 1) -> tuple[str, ...]:
        """What to compare with; several ranks, and steps behind a loader, are measured alone.

        Raises:
            ConfigError: no such peer, or one for several ranks or steps behind a loader.
        """
        if self.against and (ranks > 1 or self.workers is not None):
            raise ConfigError("--against: with --ranks or --workers only this package is measured; leave --against "
                              "out.")
        known = PEERS[self.what] + ((FP32,) if self.what in TRAINING and self.precision == "bf16" else ())
        if self.instruct:  # transformers' model of stage 2 reads no instructions
            known = tuple(name for name in known if name != "transformers")
        if ranks > 1 or self.workers is not None:  # while a peer has its turn, a loader would run ahead
            return ()
        if self.against is None:
            return known
        for name in self.against:
            if name not in known:
                hint = f"{name} is compared with --precision bf16." if name == FP32 else did_you_mean(name, known)
                what = f"{self.what}{' --instruct' if self.instruct else ''}"
                raise ConfigError(f"--against {name}: {what} has no such peer; {hint}")
        return self.against

    def check(self) -> None:
        """Refuse impossible numbers.

        Raises:
            ConfigError: fewer than one step or image, a negative warm-up, options that do not apply, or sizes
                that a CPU cannot train.
        """
        for name, value, least in (("steps", self.steps, 1), ("batch", self.images, 1), ("warmup", self.warmup, 0),
                                   ("workers", self.workers or 0, 0)):
            if value < least:
                raise ConfigError(f"--{name} is {value}, but must be at least {least}.")
        for name in self._unused():
            more = " with --workers" if name == "images_from" and self.what in TRAINING else ""
            raise ConfigError(f"--{name.removesuffix('_from')}: {self.what} has no use for it; leave it out, or "
                              f"measure {' or '.join(USERS[name])}{more}.")
        if self.size == "vitg" and self.torch_device().type == "cpu":
            raise ConfigError("--size vitg needs a GPU: one step takes minutes on a CPU. Use --size medium here.")

    def without_unused(self) -> Options:
        """The options, those that this benchmark has no use for as if they were not given."""
        unused: dict[str, Any] = {name: _DEFAULTS[name] for name in self._unused()}
        return replace(self, **unused)

    def _unused(self) -> list[str]:
        in_memory = {"images_from"} if self.what in TRAINING and self.workers is None else set[str]()
        return [name for name, users in USERS.items() if getattr(self, name) != _DEFAULTS[name]
                and (self.what not in users or name in in_memory)]


_DEFAULTS = {field.name: field.default for field in fields(Options)}
