"""An outside project in the shape of MiniGPT-4: an earlier checkpoint's Q-Former stays frozen, one layer trains."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lavis_lite.config.compose import model_sections
from lavis_lite.models.base import freeze
from lavis_lite.models.blip2.config import Blip2OPTConfig
from lavis_lite.models.blip2.llm import NOT_FOR_GENERATION, Blip2OPT
from lavis_lite.registry import registry
from lavis_lite.runners.checkpointing import CheckpointStore

ARCH = "frozen_qformer"
TRAINED = {"language_projection.weight", "language_projection.bias"}


@dataclass
class FrozenQFormerConfig(Blip2OPTConfig):
    """Section `model`."""

    arch: str = ARCH


class FrozenQFormer(Blip2OPT):
    """image -> frozen encoder -> frozen Q-Former -> a linear layer that trains -> frozen language model."""

    config_class: ClassVar[type[Blip2OPTConfig]] = FrozenQFormerConfig

    @classmethod
    def from_config(cls, cfg: Any) -> FrozenQFormer:
        model = super().from_config(cfg)
        for part in (model.qformer, model.ln_vision):
            freeze(part)
        model.query_tokens.requires_grad_(False)
        return model  # type: ignore[return-value]

    def allowed_differences(self, given: Set[str]) -> tuple[Sequence[str], Sequence[str]]:
        lacks = (r"language_projection\..*",) if not given & TRAINED else ()
        return lacks, NOT_FOR_GENERATION


if ARCH not in registry.list_models():
    registry.register_model(ARCH)(FrozenQFormer)


def section(**changes: Any) -> FrozenQFormerConfig:
    """Over the packaged mini parts, begun from the packaged stage 1."""
    mini, _ = model_sections("blip2_opt", "mini")
    keys = {key: mini.get(key) for key in FrozenQFormerConfig.__dataclass_fields__ if key != "arch"}
    return FrozenQFormerConfig(**{**keys, "pretrained": "mini/stage1", **changes})


def train(model: nn.Module, value: float = 0.25) -> None:
    """Stands for a training: what trains gets other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)


def save(model: Any, run: Path, step: int = 150, config: str = "run: {}\n") -> Path:
    """A run's checkpoint of the model."""
    store = CheckpointStore(run)
    store.prepare()
    return store.save(step, model, {"step": step, "best": None}, config)
