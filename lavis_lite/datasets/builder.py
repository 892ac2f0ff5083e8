"""From a data set's section of the configuration to its data sets, and to what is missing for them.

One builder serves a whole family of data sets; what tells its members apart are rows of YAML (configs/datasets/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lavis_lite import files
from lavis_lite.config.schema import DatasetConfig, ProcessorPair, StorageConfig
from lavis_lite.datasets.annotations import Field, Row, RowTable, file_name, identifier, read_table, text, texts
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.caption import CaptionDataset, CaptionEvalDataset
from lavis_lite.datasets.images import MAX_PIXELS, ImageFolder
from lavis_lite.datasets.locate import Source, prepare, sources
from lavis_lite.datasets.randomness import word
from lavis_lite.datasets.retrieval import RetrievalDataset, RetrievalEvalDataset
from lavis_lite.errors import ConfigError
from lavis_lite.registry import registry


@dataclass
class ImageDatasetConfig(DatasetConfig):
    """Section of a data set of images."""

    how_to_get: str | None = None
    """where the images come from, as a sentence; shown when they are missing"""
    prepare_args: dict[str, Any] = field(default_factory=dict)
    """arguments of the generator named by `prepare` (mini_world: train, val, test, ood, seed, root)"""
    max_pixels: int = MAX_PIXELS
    """width x height above which an image counts as bad and is not decoded"""
    captions_required: bool = True
    """false: evaluation rows may lack a caption (NoCaps)"""
    instruction: ProcessorPair = field(default_factory=ProcessorPair)
    """processor that puts a question into a prompt, or makes the prompt before a caption (the *_instruct data sets):
    {name: instruction, templates: vqa}; without `eval` the templates of `train`, and always the same one of them"""


@dataclass
class CustomConfig(ImageDatasetConfig):
    """Section of the `custom` builder: what the columns of your file are called."""

    image_column: str = "image"
    """path of the image, relative to build_info.images.storage (by default the annotation file's folder)"""
    caption_column: str = "caption"
    """one caption or a list of them"""
    id_column: str | None = None
    """number or name of the image, for result files"""
    split_column: str | None = None
    """column that says which split a row belongs to; one file then serves all splits"""
    split_values: dict[str, str] = field(default_factory=dict)
    """split -> its value in split_column; by default the split's own name"""
    val_fraction: float = 0.0
    """share of the images (0..1) taken from the train file for a val split, chosen by a hash of their names"""


class BaseDatasetBuilder:
    """Builds the splits of one data set.

    `config_class` (a dataclass derived from DatasetConfig) owns its keys of the `datasets.<name>` section;
    `sample_keys` documents what its training samples have.
    """

    config_class: ClassVar[type[DatasetConfig]] = DatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, cfg: DatasetConfig) -> None:
        self.name, self.cfg = name, cfg

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
        if not given and kind == "text_processor":
            return _as_it_is
        if "name" not in given:
            raise ConfigError(f"{key}: names no processor, for example {{name: blip_image_eval, image_size: 224}}.")
        cls = registry.get_processor_class(given.pop("name"))
        try:
            return cls(**given)
        except (TypeError, ConfigError) as fault:
            raise ConfigError(f"{key}: {str(fault).rstrip('.')}.") from fault

    def instruction(self, training: bool) -> Callable[..., Any] | None:
        """The `instruction` processor; None where the section has none."""
        pair: ProcessorPair | None = getattr(self.cfg, "instruction", None)
        if pair is None or not (pair.train or pair.eval):
            return None
        fixed = pair.eval or {**(pair.train or {}), "draw": False}
        return self._made("instruction", training, pair.train if training else fixed)


def _as_it_is(item: Any, rng: Any = None) -> Any:
    return item


class ImageTextBuilder(BaseDatasetBuilder):
    """What the builders of image-caption pairs share; a subclass names its data set classes."""

    config_class: ClassVar[type[DatasetConfig]] = ImageDatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = CaptionDataset.sample_keys
    train_dataset: ClassVar[type[CaptionDataset]] = CaptionDataset
    eval_dataset: ClassVar[type[CaptionEvalDataset]] = CaptionEvalDataset
    media: ClassVar[str] = "images"
    """the key of build_info that names the folder of files; its singular is the column that names a file"""
    cfg: ImageDatasetConfig

    def build(self, split: str, training: bool) -> BaseDataset | None:
        """The data set of a split; None where there is no such split. Fetches annotation files that have a URL."""
        if split not in self.splits():
            return None
        vis, text = self.processor("vis_processor", training), self.processor("text_processor", training)
        root = prepare(self.name, self.cfg.prepare, self.cfg.prepare_args)
        paths = [source.fetch() for source in self._sources(split, root)]
        table = read_table(paths, self.fields(training), "caption" if training else None, self.row_filter(split))
        folder = self.folder(self._media_root(paths, root))
        if training:
            space = self._storage() or self.name
            return self.train_dataset(table, folder, vis, text, space=space, instruction=self.instruction(True))
        return self.eval_dataset(table, folder, vis, text, instruction=self.instruction(False))

    def fields(self, training: bool) -> list[Field]:
        """What a row of the annotation files has."""
        captions_required = training or self.cfg.captions_required
        domain = [] if training else [Field("domain", text, required=False)]
        return [Field("image", file_name, self.media[:-1]), Field("caption", texts, required=captions_required),
                Field("image_id", identifier, required=False), *domain]

    def row_filter(self, split: str) -> Callable[[Row], bool] | None:
        """Which rows belong to a split; None: all rows of its file."""
        return None

    def _sources(self, split: str, root: Path | None) -> list[Source]:
        return sources(f"datasets.{self.name}.build_info.annotations.{split}",
                       self.cfg.build_info.annotations[split], root)

    def processor(self, kind: str, training: bool) -> Callable[..., Any]:
        """As in the base class.

        Raises:
            ConfigError: also where a video processor is to read images, or the reverse.
        """
        made = super().processor(kind, training)
        if kind == "vis_processor" and (getattr(made, "takes", "image") == "video") != (self.media == "videos"):
            near = "alpro_video_train, alpro_video_eval" if self.media == "videos" else "for example blip2_image_train"
            raise ConfigError(f"datasets.{self.name}.vis_processor.{'train' if training else 'eval'}: "
                              f"{type(made).__name__} does not take {self.media}; those that do: {near}.")
        return made

    def folder(self, root: Path) -> ImageFolder:
        """Reader of the files below `root`."""
        return ImageFolder(root, self.cfg.max_pixels)

    def _storage(self) -> str | None:
        storage: StorageConfig = getattr(self.cfg.build_info, self.media)
        return storage.storage

    def _media_root(self, annotations: Sequence[Path], root: Path | None) -> Path:
        storage = self._storage()
        if storage is None:
            return annotations[0].parent
        prepared = root / storage if root else None
        return prepared if prepared is not None and prepared.exists() else files.resolve(storage)

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One finished sentence per file that is not here.

        Annotations that `build` can fetch are listed only beside something it cannot, or when offline.
        """
        if self.cfg.prepare:
            return []
        fetchable: list[str] = []
        missing: list[str] = []
        for split in self.splits() if splits is None else [split for split in splits if split in self.splits()]:
            for source in self._sources(split, None):
                if not source.here():
                    (fetchable if source.fetchable() else missing).append(source.sentence())
        missing += self._missing_media()
        return list(dict.fromkeys(fetchable + missing)) if missing or files.offline() else []

    def fetch(self) -> None:
        """Annotation files of all splits, or the generated data set."""
        root = prepare(self.name, self.cfg.prepare, self.cfg.prepare_args)
        for split in self.splits():
            for source in self._sources(split, root):
                source.fetch()

    def _missing_media(self) -> list[str]:
        storage = self._storage()
        if storage is None or files.resolve(storage).is_dir():
            return []
        how = self.cfg.how_to_get or f"Set this key to the folder that holds the {self.media}."
        key = f"datasets.{self.name}.build_info.{self.media}.storage"
        return [f"{key}: there is no folder {files.resolve(storage)}. {how}"]


@registry.register_builder("image_caption")
class ImageCaptionBuilder(ImageTextBuilder):
    """Captioned images: Karpathy's lists {image, caption, image_id} and official COCO captions files.

    Training: image, text_input, image_id, instance_id, one sample per caption. Evaluation: `CaptionEvalDataset`.
    """


@registry.register_builder("image_retrieval")
class ImageRetrievalBuilder(ImageTextBuilder):
    """The same files for retrieval. Training: as captions, with image_id. Evaluation: `RetrievalEvalDataset`."""

    train_dataset = RetrievalDataset
    eval_dataset = RetrievalEvalDataset


@registry.register_builder("custom")
class CustomBuilder(ImageTextBuilder):
    """Your own JSON, JSONL, CSV or TSV file with an image and a caption column; samples as `image_caption`."""

    config_class = CustomConfig
    cfg: CustomConfig

    def __init__(self, name: str, cfg: CustomConfig) -> None:
        super().__init__(name, cfg)
        if not 0 <= cfg.val_fraction < 1:
            raise ConfigError(f"datasets.{name}.val_fraction must be at least 0 and below 1; it is {cfg.val_fraction}.")
        if cfg.split_column and not cfg.build_info.annotations:
            raise ConfigError(f"datasets.{name}.split_column needs a file: set build_info.annotations.train.storage.")

    def splits(self) -> list[str]:
        """Splits with a file of their own, those of split_values, and val where val_fraction makes one."""
        made = list(self.cfg.split_values) if self.cfg.split_column else ["val"] if self.cfg.val_fraction else []
        return list(dict.fromkeys([*self.cfg.build_info.annotations, *made]))

    def _sources(self, split: str, root: Path | None) -> list[Source]:
        own = split if split in self.cfg.build_info.annotations else next(iter(self.cfg.build_info.annotations))
        return super()._sources(own, root)

    def fields(self, training: bool) -> list[Field]:
        """Columns by the names that the section gives."""
        caption = Field("caption", texts, self.cfg.caption_column, training or self.cfg.captions_required)
        number = [Field("image_id", identifier, self.cfg.id_column)] if self.cfg.id_column else []
        return [Field("image", file_name, self.cfg.image_column), caption, *number]

    def row_filter(self, split: str) -> Callable[[Row], bool] | None:
        """By split_column, or by the hash that makes the val split."""
        if self.cfg.split_column:
            column, value = self.cfg.split_column, str(self.cfg.split_values.get(split, split))
            return lambda row: str(row.get(column)) == value
        if self.cfg.val_fraction and "val" not in self.cfg.build_info.annotations and split in ("train", "val"):
            return lambda row: self._is_val(row) == (split == "val")
        return None

    def _is_val(self, row: Row) -> bool:
        name = str(row.get(self.cfg.image_column))
        return word(*name.encode("utf-8", "surrogatepass")) < self.cfg.val_fraction * 2**64


__all__ = ["BaseDatasetBuilder", "CustomBuilder", "CustomConfig", "ImageCaptionBuilder", "ImageDatasetConfig",
           "ImageRetrievalBuilder", "RowTable"]
