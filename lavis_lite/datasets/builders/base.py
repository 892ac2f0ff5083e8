"""The contract of data set builders: from a section of the configuration to data sets, and to what is missing for them.

One builder serves a whole family of data sets; what tells its members apart are rows of YAML (configs/datasets/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig, ProcessorPair
from lavis_lite.datasets.builders.keys import refuse_ignored
from lavis_lite.datasets.texts import as_it_is
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


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
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One finished sentence per file that is not here: which, its key, the command that gets it. Opens nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define missing_files")

    def missing_packages(self) -> list[str]:
        """One sentence per optional package that the data set needs and that is not installed."""
        return []

    def fetch(self) -> None:
        """Bring here what a program may bring: annotation files that have a URL, generated files.

        Raises:
            DataError: a file is not here and has no URL, or cannot be downloaded.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fetch")

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
