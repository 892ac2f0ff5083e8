"""The zoo: models by name or run folder, with their weights and processors."""

from __future__ import annotations

from lavis_lite.zoo.catalogue import (
    NOT_RUN,
    RUNS_OFFLINE,
    ModelZoo,
    ZooRow,
    describe,
    list_models,
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    model_zoo,
)

__all__ = ["NOT_RUN", "RUNS_OFFLINE", "ModelZoo", "ZooRow", "describe", "list_models", "load_model",
           "load_model_and_preprocess", "load_preprocess", "model_zoo"]
