"""The contract of data set builders: from a section of the configuration to data sets, and to what is missing for them.

One builder serves a whole family of data sets; what tells its members apart are rows of YAML (configs/datasets/).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig, ProcessorPair
from lavis_lite.datasets.base import as_it_is
from lavis_lite.errors import ConfigError, UndefinedMethodError, did_you_mean
from lavis_lite.registry import registry

# --- keys without effect ---------------------------------------------------------------------------------------------
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
DIALOGUES = dict.fromkeys(("key_column", "row_files", "nested", "parallel", "join_column", "answer_words",
                           "question_types"),
                          "the layout of dialogues is fixed")
CLASSES = dict.fromkeys(
    ("columns", "key_column", "row_files", "nested", "parallel", "required", "join_column", "answer_words",
     "answer_list", "image_pattern", "split_column", "split_values", "val_fraction", "delimiter", "quoting", "encoding",
     "prepare", "prepare_args", "question_types"), "the folders of the classes are the rows")
LISTS = dict.fromkeys(("delimiter", "quoting"), "the cells of CSV and TSV files hold no lists of images")
NEEDS = {"split_values": "split_column", "prepare_args": "prepare"}
"""key -> the key without which it has no effect"""
BY_SPLIT = ("references", "relevance", "image_pattern", "question_types")
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


# --- builders --------------------------------------------------------------------------------------------------------
class BaseDatasetBuilder:
    """Builds the splits of one data set.

    `config_class` (a dataclass derived from DatasetConfig) owns its keys of the `datasets.<name>` section;
    `sample_keys` documents what its training samples have.
    """

    config_class: ClassVar[type[DatasetConfig]] = DatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = ()
    eval_dataset: ClassVar[type[Any] | None] = None
    """class of the data sets that `build` makes for evaluation: what tasks are compared with before anything is read;
    None: it depends on the files"""
    ignored_keys: ClassVar[Mapping[str, str]] = {}
    """keys of `config_class` that the builder does nothing with -> why; a section that sets one is refused"""
    as_written = False
    """whether a section without an image processor gives images as they are"""

    def __init__(self, name: str, cfg: DatasetConfig) -> None:
        refuse_ignored(name, cfg, self.ignored_keys)
        self.name, self.cfg = name, cfg

    @classmethod
    def evaluation_class(cls) -> type | None:
        """`eval_dataset`, unless a subclass builds something else by a `build` of its own; None: not known."""
        for base in cls.__mro__:
            if "eval_dataset" in vars(base):
                return base.eval_dataset  # type: ignore[attr-defined]
            if "build" in vars(base):
                break
        return None

    def splits(self) -> list[str]:
        """Splits that `build` can give."""
        return list(self.cfg.build_info.annotations)

    def build(self, split: str, training: bool) -> Any | None:
        """The data set of a split, with training or evaluation processors; None where there is no such split.

        Raises:
            DataError: files are missing or faulty. ConfigError: the section is.
        """
        raise UndefinedMethodError.of(self, "build")

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One finished sentence per file that is not here: which, its key, the command that gets it. Opens nothing."""
        raise UndefinedMethodError.of(self, "missing_files")

    def missing_packages(self) -> list[str]:
        """One sentence per optional package that the data set needs and that is not installed."""
        return []

    def fetch(self) -> None:
        """Bring here what a program may bring: annotation files that have a URL, generated files.

        Raises:
            DataError: a file is not here and has no URL, or cannot be downloaded.
        """
        raise UndefinedMethodError.of(self, "fetch")

    def processor(self, kind: str, training: bool) -> Callable[..., Any]:
        """The `vis_processor` or `text_processor` of the section.

        Raises:
            ConfigError: no image processor is named, or its parameters do not fit.
        """
        pair: ProcessorPair = getattr(self.cfg, kind)
        return self._made(kind, training, getattr(pair, "train" if training else "eval"))

    def _made(self, kind: str, training: bool, section: Mapping[str, Any] | None) -> Callable[..., Any]:
        key = f"datasets.{self.name}.{kind}.{'train' if training else 'eval'}"
        given = dict(section or {})
        if not given and (kind == "text_processor" or self.as_written):
            return as_it_is
        if "name" not in given:
            raise ConfigError(f"{key}: names no processor, for example {{name: blip_image_eval, image_size: 224}}.")
        cls = registry.get_processor_class(given.pop("name"))
        try:
            return cls(**given)
        except (TypeError, ValueError, OverflowError, ConfigError) as error:
            raise ConfigError(f"{key}: {str(error).rstrip('.')}.") from error

    def instruction(self, training: bool) -> Callable[..., Any] | None:
        """The `instruction` processor; None where the section has none."""
        pair: ProcessorPair | None = getattr(self.cfg, "instruction", None)
        if pair is None or not (pair.train or pair.eval):
            return None
        fixed = pair.eval or {**(pair.train or {}), "draw": False}
        return self._made("instruction", training, pair.train if training else fixed)
