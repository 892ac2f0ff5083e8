"""Files that a run needs and that are missing here."""

from __future__ import annotations

from lavis_lite.checkpoints.weights import required_weights
from lavis_lite.config.schema import Config, ModelConfig
from lavis_lite.errors import RegistryError
from lavis_lite.io import files
from lavis_lite.redaction import mask
from lavis_lite.registry import registry


def missing(config: Config) -> list[str]:
    """Missing annotations, images, weights and tokenizers, with the searched paths and the command to fetch them."""
    run = config.run
    splits = [*([] if run.evaluate else run.train_splits), *run.valid_splits, *run.test_splits]
    wanted: list[str] = []
    for name, section in config.datasets.items():
        try:
            builder = registry.get_builder_class(section.builder or name)
        except RegistryError:
            continue  # reported by `check`
        wanted += builder(name, section).missing_files(splits)
    return [mask(text) for text in wanted + missing_weights(config.model)]


def missing_weights(section: ModelConfig) -> list[str]:
    """Weights and tokenizers of a model section that are neither on disk nor packaged."""
    return [need.describe_missing() for need in required_weights(section) if not need.is_local()]


def fetch_hint(cfg_path: str) -> str:
    """The command that fetches missing files."""
    return f"python -m lavis_lite fetch --cfg-path {cfg_path}   (cache: {files.cache_root()})"
