"""LAVIS' data set builders: the base class for those of a project, the adapter that the package asks, and LAVIS' own.

A run that only names a data set of LAVIS uses this package's builders; LAVIS' own are for subclasses of a project.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from lavis_lite import distributed
from lavis_lite.compat.lavis import dataset_classes as sets
from lavis_lite.compat.lavis.datasets import DatasetAdapter
from lavis_lite.compat.lavis.paths import config_path, located
from lavis_lite.compat.lavis.processors import BaseProcessor
from lavis_lite.compat.lavis.registry import registry
from lavis_lite.compat.lavis.sections import as_node, reading, section_class
from lavis_lite.config.compose import compose_dataset
from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.builders.base import BaseDatasetBuilder as CoreBuilder
from lavis_lite.errors import ConfigError, ContractError, DataError, ErrorList
from lavis_lite.io import files
from lavis_lite.registry import registry as core

SPLITS = ("train", "val", "test")


@dataclass
class LavisDatasetConfig(DatasetConfig):
    """What the package needs of such a section; build_info is as the builder reads it."""

    build_info: Any = field(default_factory=dict)
    data_type: Any = "images"


class BaseDatasetBuilder:
    """A builder written for LAVIS: classes of data sets, and a YAML of defaults for each type.

    Args:
        cfg: the section `datasets.<name>`; a path of a YAML with such a section; None: the defaults.
    """

    train_dataset_cls: Any = None
    eval_dataset_cls: Any = None
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {}

    def __init__(self, cfg: Any = None) -> None:
        if cfg is None:
            cfg = load_dataset_config(self.default_config_path())
        self.config = load_dataset_config(cfg) if isinstance(cfg, str) else cfg
        self.data_type = self.config.get("data_type", "images")
        self.vis_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}
        self.text_processors: dict[str, Any] = {"train": BaseProcessor(), "eval": BaseProcessor()}
        self.kw_processors: dict[str, Any] = {}

    @classmethod
    def default_config_path(cls, type: str = "default") -> str:
        """The YAML of a type of the data set."""
        if type not in cls.DATASET_CONFIG_DICT:
            raise ConfigError(f"{cls.__name__} has no type {type!r} in DATASET_CONFIG_DICT.")
        return config_path(cls, cls.DATASET_CONFIG_DICT[type])

    def build_datasets(self) -> dict[str, Any]:
        """Split -> data set; downloads annotations first, on one rank."""
        if distributed.is_main():
            self._download_data()
        distributed.barrier()
        return self.build()

    def build_processors(self) -> None:
        """Make the processors that the section names."""
        for kind, made in (("vis_processor", self.vis_processors), ("text_processor", self.text_processors)):
            section = self.config.get(kind)
            for mode in ("train", "eval") if section is not None else ():
                if section.get(mode) is not None:
                    made[mode] = self._build_proc_from_cfg(section.get(mode))
        for name, section in (self.config.get("kw_processor") or {}).items():
            self.kw_processors[name] = self._build_proc_from_cfg(section)

    @staticmethod
    def _build_proc_from_cfg(cfg: Any) -> Any:
        return None if cfg is None else registry.get_processor_class(cfg.name).from_config(cfg)

    def _download_data(self) -> None:
        self._download_ann()
        self._download_vis()

    def _download_ann(self) -> None:
        for _, url, storage in annotation_files(self.config):
            target = files.resolve(storage)
            if url and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                if files.is_url(url):
                    files.fetch(url, to=target)
                else:
                    shutil.copyfile(files.resolve(url), target)

    def _download_vis(self) -> None:
        """Images are the user's to bring; a missing folder is reported when a sample is read."""

    def build(self) -> dict[str, Any]:
        """Split -> data set of `train_dataset_cls` (split train) or `eval_dataset_cls`."""
        self.build_processors()
        info = self.config.build_info
        media = info.get(self.data_type) or {}
        root = media.get("storage")
        datasets = {}
        for split, section in info.annotations.items():
            if split not in SPLITS:
                continue
            mode = "train" if split == "train" else "eval"
            cls = self.train_dataset_cls if mode == "train" else self.eval_dataset_cls
            if cls is None:
                raise ContractError(f"{type(self).__name__}.{mode}_dataset_cls is not set, and {split} needs it.")
            datasets[split] = cls(
                vis_processor=self.vis_processors[mode], text_processor=self.text_processors[mode],
                ann_paths=[str(files.resolve(path)) for path in as_paths(section.get("storage"))],
                vis_root=str(files.resolve(root)) if root else root)
        return datasets


class PackagedBuilder(BaseDatasetBuilder):
    """A data set of this package behind LAVIS' calls; `name` is its name.

    Args:
        cfg: the section `datasets.<name>` of a run; None: the package's row.
    """

    name: ClassVar[str]

    def __init__(self, cfg: Any = None) -> None:
        self.section = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg or {})

    def build_datasets(self) -> dict[str, Any]:
        """Split -> data set.

        Raises:
            ErrorList: the section does not fit.
        """
        composition = compose_dataset(self.name, section=self.section)  # type: ignore[arg-type]
        if composition.errors:
            raise ErrorList(f"{self.name}:", composition.errors)
        section = composition.config.datasets[self.name]
        builder = core.get_builder_class(section.builder or self.name)(self.name, section)
        made = {split: builder.build(split, split.startswith("train")) for split in builder.splits()}
        return {split: dataset for split, dataset in made.items() if dataset is not None}


def of_core(name: str) -> type[PackagedBuilder]:
    """The class with LAVIS' calls of a data set of the package."""
    return type(name, (PackagedBuilder,), {"name": name, "__module__": __name__})


def as_paths(value: Any) -> list[str]:
    """One path or several -> a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(path) for path in value]


def annotation_files(section: Any, splits: Sequence[str] = SPLITS) -> list[tuple[str, str, str]]:
    """(key, url or "", storage) of every annotation file of a section."""
    found = []
    build_info = section.get("build_info") or {}
    annotations = build_info.get("annotations") if isinstance(build_info, Mapping) else None
    for split, files_of in (annotations or {}).items():
        if split in splits and files_of is not None:
            urls, storages = as_paths(files_of.get("url")), as_paths(files_of.get("storage"))
            urls += [""] * (len(storages) - len(urls))
            found += [(f"build_info.annotations.{split}.storage", url, storage)
                      for url, storage in zip(urls, storages, strict=False)]
    return found


def load_dataset_config(cfg_path: str) -> Any:
    """The section of the one data set in a YAML of LAVIS' layout.

    Raises:
        ConfigError: the file has no section `datasets`.
    """
    content = OmegaConf.load(cfg_path)
    if "datasets" not in content:
        raise ConfigError(f"{cfg_path} has no section `datasets`.")
    return next(iter(content.datasets.values()))


class BuilderAdapter(CoreBuilder):
    """A builder of LAVIS as one of this package: built once, its data sets wrapped."""

    written: ClassVar[type]
    section_class: ClassVar[type]

    def __init__(self, name: str, cfg: DatasetConfig) -> None:
        super().__init__(name, cfg)
        self._datasets: dict[str, Any] | None = None

    def splits(self) -> list[str]:
        """Splits with annotations in the section; none where only the builder knows them."""
        return [split for split in SPLITS if annotation_files(self.cfg, [split])]

    def build(self, split: str, training: bool) -> Any | None:
        """The data set of a split, as the builder made it; None where it made none."""
        if self._datasets is None:
            builder: Any = self.written
            try:
                with reading(f"datasets.{self.name}", builder):
                    made = builder(as_node(self.cfg)).build_datasets()
            except OSError as error:
                raise DataError(f"datasets.{self.name}: {builder.__name__}.build_datasets needs a file that cannot be "
                                f"read: {error}") from error
            if not isinstance(made, Mapping):
                raise ContractError(f"{builder.__name__}.build_datasets must return {{split: data set}}, not "
                                    f"{type(made).__name__}.")
            self._datasets = {name: DatasetAdapter(found, f"{self.name}, {name}") for name, found in made.items()}
        return self._datasets.get(split)

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One sentence per annotation file that is neither here nor has a URL."""
        found = []
        for key, url, storage in annotation_files(self.cfg, SPLITS if splits is None else splits):
            path = files.resolve(storage)
            if not path.exists() and not url:
                found.append(f"datasets.{self.name}.{key}: {path} is not here.")
        return found

    def fetch(self) -> None:
        """Download annotation files that have a URL.

        Raises:
            DataError: one cannot be downloaded.
        """
        builder: Any = self.written
        try:
            builder(as_node(self.cfg))._download_ann()
        except OSError as error:
            raise DataError(f"datasets.{self.name}: annotations cannot be fetched: {error}") from error


def adapted(written: type) -> type:
    """The adapter of a builder class."""
    return type(written.__name__, (BuilderAdapter,), {
        "written": written, "section_class": section_class(LavisDatasetConfig, written),
        "DATASET_CONFIG_DICT": getattr(written, "DATASET_CONFIG_DICT", {}),
        "locate_config": partial(located, written), "__module__": written.__module__})


# LAVIS' own -----------------------------------------------------------------------------------------------------------
TABLE = {
    "COCOCapBuilder": ("Caption", "CaptionEval", {"default": "coco/defaults_cap"}),
    "Flickr30kCapBuilder": ("Caption", "CaptionEval", {"default": "flickr30k/defaults_cap"}),
    "MSRVTTCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "msrvtt/defaults_cap"}),
    "MSVDCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "msvd/defaults_cap"}),
    "VATEXCapBuilder": ("VideoCaption", "VideoCaptionEval", {"default": "vatex/defaults_cap"}),
    "COCORetrievalBuilder": ("Retrieval", "RetrievalEval", {"default": "coco/defaults_ret"}),
    "Flickr30kBuilder": ("Retrieval", "RetrievalEval", {"default": "flickr30k/defaults"}),
    "MSRVTTRetrievalBuilder": ("VideoRetrieval", "VideoRetrievalEval", {"default": "msrvtt/defaults_ret"}),
    "DiDeMoRetrievalBuilder": ("VideoRetrieval", "VideoRetrievalEval", {"default": "didemo/defaults_ret"}),
    "COCOVQABuilder": ("COCOVQA", "COCOVQAEval", {"default": "coco/defaults_vqa", "eval": "coco/eval_vqa"}),
    "MSRVTTQABuilder": ("VideoQA", "VideoQA", {"default": "msrvtt/defaults_qa"}),
    "MSVDQABuilder": ("VideoQA", "VideoQA", {"default": "msvd/defaults_qa"}),
    "AVSDDialBuilder": ("AVSDDial", "AVSDDialEval", {"default": "avsd/defaults_dial"}),
}
"""class -> beginnings of the names of its data sets, and type -> YAML below configs/datasets"""


class VideoQABuilder(BaseDatasetBuilder):
    """Questions about clips; `ans2label` of the annotations numbers the answers."""

    train_dataset_cls = eval_dataset_cls = sets.VideoQADataset

    def build(self) -> dict[str, Any]:
        """As `BaseDatasetBuilder`, with the numbers of answers in every data set.

        Raises:
            ConfigError: the section names no `ans2label`.
        """
        numbers = self.config.build_info.annotations.get("ans2label")
        if numbers is None:
            raise ConfigError(f"{type(self).__name__}: build_info.annotations.ans2label.storage must name a file "
                              "{answer: number}.")
        datasets = super().build()
        for dataset in datasets.values():
            dataset._build_class_labels(str(files.resolve(numbers.storage)))
        return datasets


def __getattr__(name: str) -> Any:
    if name not in TABLE:
        raise AttributeError(name)
    trained, scored, yamls = TABLE[name]
    made = globals()[name] = type(name, (VideoQABuilder if trained == "VideoQA" else BaseDatasetBuilder,), {
        "train_dataset_cls": getattr(sets, f"{trained}Dataset"), "eval_dataset_cls": getattr(sets, f"{scored}Dataset"),
        "DATASET_CONFIG_DICT": {kind: f"configs/datasets/{path}.yaml" for kind, path in yamls.items()},
        "__module__": __name__})
    return made
