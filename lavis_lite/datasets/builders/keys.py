"""Keys of a section that a builder inherits but does nothing with: refused, so that no setting is silently ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.errors import ConfigError, did_you_mean

NOWHERE = {
    "kw_processor": "no builder has such a processor",
    "build_info.features": "kept features are named by the key `features` of the section",
}
"""key -> why it has no effect with any builder of the package"""
NO_SHARDS = {"build_info.storage": "it names the shards of the builder image_shards; set build_info.annotations or "
                                   "build_info.images.storage"}
IMAGES = {**NOWHERE, **NO_SHARDS, "build_info.videos": "this builder reads images; see video_caption and video_qa"}
VIDEOS = {**NOWHERE, **NO_SHARDS, "build_info.images": "this builder reads videos; set build_info.videos.storage"}
SHARDS = {
    **NOWHERE, "build_info.videos": IMAGES["build_info.videos"],
    **dict.fromkeys(("prepare", "prepare_args", "image_pattern", "delimiter", "quoting", "encoding"),
                    "shards hold images and rows together, in the layout of `data shard` and `data index`"),
}
FEATURES = {"features": "features are kept of images, not of videos"}
QUESTIONS = dict.fromkeys(("captions", "captions_per_image", "captions_required", "references"),
                          "this builder reads questions, not captions")
DIALOGUES = dict.fromkeys(("key_column", "row_files", "nested", "parallel", "join_column", "answer_words"),
                          "the layout of dialogues is fixed")
NEEDS = {"split_values": "split_column", "prepare_args": "prepare"}
"""key -> the key without which it has no effect"""
BY_SPLIT = ("references", "relevance", "image_pattern")
"""keys that may be a mapping from splits"""


def refuse_ignored(name: str, cfg: DatasetConfig, ignored: Mapping[str, str]) -> None:
    """Check that a section sets no key that would do nothing.

    Args:
        name: of the section.
        cfg: the section.
        ignored: key, dotted below build_info -> why it has no effect.

    Raises:
        ConfigError: names the key, why it has no effect, and what to do.
    """
    default = type(cfg)()
    for key, why in ignored.items():
        if _value(cfg, key) != _value(default, key):
            raise ConfigError(f"datasets.{name}.{key} has no effect with builder {cfg.builder or name}: {why}. Take it "
                              "out.")
    for key, needed in NEEDS.items():
        if getattr(cfg, key, None) and not getattr(cfg, needed):
            raise ConfigError(f"datasets.{name}.{key} has no effect without {needed}: set {needed}, or take it out.")


def refuse_unknown_splits(name: str, cfg: DatasetConfig, splits: Collection[str]) -> None:
    """Check that mappings from splits name splits that the section has.

    Raises:
        ConfigError: names the key and the nearest split.
    """
    for key in BY_SPLIT:
        value = getattr(cfg, key, None)
        for split in value if isinstance(value, dict) else ():
            if split not in splits:
                raise ConfigError(f"datasets.{name}.{key}.{split}: the data set has no such split; "
                                  f"{did_you_mean(split, splits)}")


def _value(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = getattr(cfg, part, None)
    return cfg
