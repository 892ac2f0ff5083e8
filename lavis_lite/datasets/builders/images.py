"""Builders of captioned images, in files and folders or in shards: captions and retrieval."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lavis_lite.config.schema import DatasetConfig, FileConfig, ProcessorPair, Section
from lavis_lite.datasets.annotations.kinds import file_name, identifier, one_spelling, text, texts
from lavis_lite.datasets.annotations.readers import InSplit
from lavis_lite.datasets.annotations.rows import Field, Row, RowTable, read_table, with_references
from lavis_lite.datasets.annotations.text_files import FileFormat, Quoting
from lavis_lite.datasets.base import BaseDataset, unchanged
from lavis_lite.datasets.builders.base import IMAGES, SHARDS, BaseDatasetBuilder, refuse_unknown_splits
from lavis_lite.datasets.caption import CaptionDataset, CaptionEvalDataset, RetrievalDataset, RetrievalEvalDataset
from lavis_lite.datasets.features.cache import FeatureFolder, open_features
from lavis_lite.datasets.files.columnar import Cells
from lavis_lite.datasets.files.image_paths import with_pattern, within
from lavis_lite.datasets.files.locate import (
    Source,
    is_columnar,
    names_in,
    prepare,
    sources,
    table_files,
    was_unpacked_into,
)
from lavis_lite.datasets.loading.sampler import hash64
from lavis_lite.datasets.media.arrays import ArrayFolder, Stream, open_source
from lavis_lite.datasets.media.images import MAX_PIXELS, ImageFolder
from lavis_lite.datasets.shards.dataset import missing_shards, open_shards
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io import files
from lavis_lite.registry import registry

ALL_ROWS = "*"
COLUMNS_OF_CAPTIONS = ("image", "caption", "image_id")
"""keys of `columns` of a data set of captions"""


@dataclass
class StreamConfig(Section):
    """One array of each item, in the place of its image."""

    storage: str | None = None
    """folder, HDF5 file or safetensors file; absent: build_info.images.storage, or the shards"""
    suffix: str = ""
    """appended to the name of the item, such as .npy"""
    tokens: int | None = None
    """length up to which shorter features are padded; longer ones are bad samples. Absent: all have one length"""


@dataclass
class ImageDatasetConfig(DatasetConfig):
    """Section of a data set of images."""

    how_to_get: str | None = None
    """where the images come from, as a sentence; shown when they are missing"""
    prepare_args: dict[str, Any] = field(default_factory=dict)
    """arguments of the generator named by `prepare` (mini_world: train, val, test, ood, seed, root)"""
    delimiter: str | None = None
    """what separates the cells of CSV and TSV files; absent: found out from the header"""
    quoting: Quoting = "auto"
    """of CSV and TSV files. minimal: cells may be quoted; none: quotation marks belong to the texts"""
    encoding: str | None = None
    """of the annotation files, such as cp1252; absent: UTF-8, or what a byte-order mark says"""
    max_pixels: int = MAX_PIXELS
    """width x height above which an image counts as bad and is not decoded"""
    captions_per_image: int | None = None
    """training: only the first n captions of each image; absent: all"""
    captions_required: bool = True
    """false: evaluation rows may lack a caption (NoCaps)"""
    references: dict[str, FileConfig] = field(default_factory=dict)
    """by split: a COCO captions file with the captions to score by, where the annotations name the images alone; joined
    by image_id. Where it is not here and cannot be fetched the split is predicted, not scored"""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """what a column is called in the files, where it is not called so: image, caption, image_id"""
    image_pattern: str | list[str] | dict[str, str | list[str]] | None = None
    """path of a row's image out of its columns, for files that have image ids only, or one pattern per split:
    "{data_subtype}/COCO_{data_subtype}_{image_id:012d}.jpg". Of a list of patterns the first whose file is there.
    {split} is the split; {column:suffix} is the ending of a file name or URL"""
    split_column: str | None = None
    """column that says which split a row belongs to; one file then serves all splits"""
    split_values: dict[str, str | list[str]] = field(default_factory=dict)
    """split -> its value in split_column, or a list of them, "*" for all rows; by default the split's own name"""
    val_fraction: float = 0.0
    """share of the images (0..1) taken from the train file for a val split, chosen by a hash of their names"""
    captions: Literal["each", "random"] = "each"
    """training: one sample per caption, or one per row whose caption is drawn again every epoch"""
    features: str | None = None
    """folder of `data cache-features`: the frozen vision encoder's outputs, read in place of the training images"""
    arrays: dict[str, StreamConfig] = field(default_factory=dict)
    """features or raw arrays in the place of images, by name of the stream; several are joined in this order"""
    instruction: ProcessorPair = field(default_factory=ProcessorPair)
    """processor that puts a question into a prompt, or makes the prompt before a caption (the *_instruct data sets):
    {name: instruction, templates: vqa}; without `eval` the templates of `train`, and always the same one of them"""


class ImageTextBuilder(BaseDatasetBuilder):
    """What the builders of image-caption pairs share; a subclass names its data set classes."""

    config_class: ClassVar[type[DatasetConfig]] = ImageDatasetConfig
    sample_keys: ClassVar[tuple[str, ...]] = CaptionDataset.sample_keys
    ignored_keys: ClassVar[Mapping[str, str]] = IMAGES
    train_dataset: ClassVar[type[CaptionDataset]] = CaptionDataset
    eval_dataset: ClassVar[type[Any]] = CaptionEvalDataset
    media: ClassVar[str] = "images"
    """the key of build_info that names the folder of files; its singular is the column that names a file"""
    cfg: ImageDatasetConfig

    def __init__(self, name: str, cfg: ImageDatasetConfig) -> None:
        super().__init__(name, cfg)
        self._roots: dict[str, Path | None] = {}
        if cfg.split_column and not cfg.build_info.annotations:
            raise ConfigError(f"datasets.{name}.split_column needs a file: set build_info.annotations.train.storage.")
        if self.media == "images" and "video" in cfg.data_type:
            raise ConfigError(f"datasets.{name}.data_type is {cfg.data_type}, but builder {cfg.builder or name} reads "
                              "images; see video_caption and video_qa.")
        if not 0 <= cfg.val_fraction < 1:
            raise ConfigError(f"datasets.{name}.val_fraction must be at least 0 and below 1; it is {cfg.val_fraction}.")
        if cfg.captions_per_image is not None and (cfg.captions_per_image < 1 or cfg.captions != "each"):
            raise ConfigError(f"datasets.{name}.captions_per_image must be at least 1 and needs `captions: each`; "
                              f"it is {cfg.captions_per_image}, with `captions: {cfg.captions}`.")
        refuse_unknown_splits(name, cfg, self.splits())
        self.refuse_unknown_columns()

    def refuse_unknown_columns(self) -> None:
        """Check the keys of `columns`; a ConfigError names the nearest one."""
        for key in [key for key in self.cfg.columns if key not in COLUMNS_OF_CAPTIONS]:
            hint = did_you_mean(key, COLUMNS_OF_CAPTIONS)
            raise ConfigError(f"datasets.{self.name}.columns.{key}: no such column; {hint}")

    def splits(self) -> list[str]:
        """Splits with their own files, those of split_values, and val if val_fraction makes one."""
        made = list(self.cfg.split_values) if self.cfg.split_column else ["val"] if self.cfg.val_fraction else []
        return list(dict.fromkeys([*self.cfg.build_info.annotations, *made]))

    def pattern_of(self, split: str) -> str | list[str] | None:
        """The split's image pattern, or several to try."""
        return pattern.get(split) if isinstance(pattern := self.cfg.image_pattern, dict) else pattern

    def build(self, split: str, training: bool) -> BaseDataset | None:
        """The data set of a split; None if there is no such split. Fetches annotation files that have a URL."""
        if split not in self.splits():
            return None
        vis, text = self.processor("vis_processor", training), self.processor("text_processor", training)
        table, folder, space = self.open_rows(split, training)
        folder = self.with_arrays(folder)
        if training:
            if (most := self.cfg.captions_per_image) is not None:
                table = table.first_of_each("image", most)
            return self.train_dataset(table, self.kept_features(vis, folder) or folder, vis, text, space=space,
                                      instruction=self.instruction(True))
        return self.eval_dataset(self._with_references(table, split), folder, vis, text,
                                 instruction=self.instruction(False))

    def with_arrays(self, items: ImageFolder) -> ImageFolder:
        """The arrays of the section's streams, by the names of these items; without streams the items themselves."""
        streams = {name: Stream(open_source(f"datasets.{self.name}.arrays.{name}", one.storage, one.suffix, items),
                                one.tokens) for name, one in self.cfg.arrays.items()}
        return ArrayFolder(items.root, streams) if streams else items

    def open_rows(self, split: str, training: bool) -> tuple[RowTable, ImageFolder, str]:
        """Rows of a split (for training one per caption), its images, and what keeps their ids apart from others'."""
        explode = "caption" if training and self.cfg.captions == "each" else None
        entry = self.shards(split)
        if entry is not None:
            return open_shards(entry, self._key(split), self.fields(training), explode, self.row_filter(split),
                               self.cfg.max_pixels)
        paths = self.annotation_files(split)
        folder = self.folder_of(paths)
        fields = with_pattern(f"datasets.{self.name}", self.fields(training), self.pattern_of(split), split,
                              self._exists(paths))
        table = read_table(paths, within(fields, folder.root), explode, self.row_filter(split),
                           kept=f"{split} {self.cfg}", form=self.file_format())
        return table, folder, self._storage() or self.name

    @property
    def root(self) -> Path | None:
        """The folder of generated files, which are made on first use; None: the section names no generator."""
        key = repr((self.cfg.prepare, self.cfg.prepare_args))
        if key not in self._roots:
            self._roots[key] = prepare(self.name, self.cfg.prepare, self.cfg.prepare_args)
        return self._roots[key]

    def shards(self, split: str) -> FileConfig | None:
        """The entry of a split that is in shards; None: annotation files and loose files of media."""
        entry = self.cfg.build_info.annotations.get(self._own(split))
        return entry if entry is not None and self.media == "images" and names_in(entry) is not None else None

    def kept_features(self, vis: Callable[..., Any], images: ImageFolder) -> FeatureFolder | None:
        """What stands in place of the training images, where the section names such."""
        folder = self.cfg.features
        return open_features(folder, f"datasets.{self.name}", self.cfg.vis_processor.train, vis,
                             images) if folder else None

    def fields(self, training: bool) -> list[Field]:
        """What a row of the annotation files has."""
        image, image_id = self.image_columns()
        caption = str(self.cfg.columns.get("caption", "caption"))
        return [Field("image", file_name, image),
                Field("caption", texts, caption, training or self.cfg.captions_required),
                Field("image_id", identifier, image_id, False, "image_id" in self.cfg.columns),
                *([] if training else [Field("domain", text, required=False)])]

    def _exists(self, paths: Sequence[Path]) -> Callable[[str], bool]:
        folder = self._media_root(paths)
        return lambda name: (folder / name).is_file()

    def row_filter(self, split: str) -> Callable[[Row], bool] | None:
        """Which rows belong to a split, by split_column or by the hash that makes val; None: all rows of its file."""
        column, value = self.cfg.split_column, self.cfg.split_values.get(split, split)
        wanted = {str(one) for one in (value if isinstance(value, list) else [value])}
        if column is not None:
            key = f"datasets.{self.name}.split_values.{split}"
            return None if ALL_ROWS in wanted else InSplit(column, wanted, key)
        if self.cfg.val_fraction and "val" not in self.cfg.build_info.annotations and split in ("train", "val"):
            return lambda row: self._is_val(row) == (split == "val")
        return None

    def image_columns(self) -> Sequence[str]:
        """Columns that may name a raw row's image; the first that is there counts."""
        return (str(self.cfg.columns.get("image", self.media[:-1])), str(self.cfg.columns.get("image_id", "image_id")))

    def _is_val(self, row: Row) -> bool:
        named = next((row[column] for column in self.image_columns() if row.get(column) is not None), None)
        return hash64(*one_spelling(str(named)).encode("utf-8", "surrogatepass")) < self.cfg.val_fraction * 2**64

    def annotation_files(self, split: str) -> list[Path]:
        """The files of a split, fetched if need be, of a folder those in it; DataError if one is missing."""
        paths = [source.fetch() for source in self._sources(split)]
        if twice := [path for number, path in enumerate(paths) if path in paths[:number]]:
            raise DataError(f"{self._key(self._own(split))}: names {twice[0]} twice, so its rows would count twice.")
        return [file for path in paths for file in table_files(path) or [path]]

    def folder_of(self, paths: Sequence[Path]) -> ImageFolder:
        """Reader of the media of a split with these annotation files, and of pictures in their cells."""
        folder = self.folder(self._media_root(paths))
        if any(map(is_columnar, paths)):
            folder.cells = Cells(paths).prepared()
        return folder

    def _sources(self, split: str) -> list[Source]:
        own = self._own(split)
        return sources(self._key(own), self.cfg.build_info.annotations[own], self.root)

    def _with_references(self, table: RowTable, split: str) -> RowTable:
        """The rows with the captions of the split's own file of them; unchanged if that file is not available."""
        entry, key = self.cfg.references.get(split), f"datasets.{self.name}.references.{split}"
        for source in sources(key, entry, self.root) if entry is not None else []:
            try:
                path = source.fetch()
            except DataError as error:
                warnings.warn(f"split {split!r} of {self.name} will be predicted and not scored: {error}", stacklevel=3)
            else:
                table = with_references(table, path, split)
        return table

    def _own(self, split: str) -> str:
        """The split whose files hold the rows of a split."""
        return split if split in self.cfg.build_info.annotations else next(iter(self.cfg.build_info.annotations))

    def _key(self, split: str) -> str:
        return f"datasets.{self.name}.build_info.annotations.{split}"

    def processor(self, kind: str, training: bool) -> Callable[..., Any]:
        """As in the base class; a ConfigError also if a video processor would read images, or the reverse."""
        pair = self.cfg.vis_processor
        arrays = kind == "vis_processor" and bool(self.cfg.arrays)
        if arrays and not (pair.train if training else pair.eval):
            return unchanged
        made = super().processor(kind, training)
        takes_video = getattr(made, "takes", "image") == "video"
        if kind == "vis_processor" and not arrays and takes_video != (self.media == "videos"):
            raise ConfigError(
                f"datasets.{self.name}.vis_processor.{'train' if training else 'eval'}: {type(made).__name__} does not "
                f"take {self.media}; those that do: " + ("for example blip2_image_train." if takes_video else
                                                         "alpro_video_train, alpro_video_eval."))
        return made

    def folder(self, root: Path) -> ImageFolder:
        """Reader of the files below `root`."""
        return ImageFolder(root, self.cfg.max_pixels, self.follows_links(root))

    def follows_links(self, root: Path) -> bool:
        """Whether links in the folder of files may lead out of it."""
        follow = getattr(self.cfg.build_info, self.media).follow_links
        return not was_unpacked_into(root) if follow is None else follow

    def file_format(self) -> FileFormat:
        """How the annotation files are written, as far as the section says."""
        return FileFormat(self.cfg.delimiter, self.cfg.quoting, self.cfg.encoding)

    def _storage(self) -> str | None:
        return getattr(self.cfg.build_info, self.media).storage

    def _media_root(self, annotations: Sequence[Path]) -> Path:
        storage = self._storage()
        if storage is None:
            if len(folders := {path.parent for path in annotations}) > 1 and not all(map(is_columnar, annotations)):
                raise DataError(f"datasets.{self.name}: the annotation files of one split are in several folders "
                                f"({', '.join(sorted(map(str, folders)))}), so where are its {self.media}? Set "
                                f"build_info.{self.media}.storage.")
            return annotations[0].parent
        prepared = self.root / storage if self.root else None
        return prepared if prepared is not None and prepared.exists() else files.resolve(storage)

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One sentence per file that is not here; those that `build` fetches only beside others, or when offline."""
        if self.cfg.prepare:
            return []
        wanted = self.splits() if splits is None else [split for split in splits if split in self.splits()]
        entries = {split: self.shards(split) for split in wanted}
        missing = [line for split, entry in entries.items() if entry is not None
                   for line in missing_shards(entry, self._key(split), self.cfg.how_to_get)]
        absent = [source for split, entry in entries.items() if entry is None
                  for source in self._sources(split) if not source.here()]
        fetchable = [source.how_to_get() for source in absent if source.fetchable()]
        missing += [source.how_to_get() for source in absent if not source.fetchable()]
        storage = self._storage()
        loose = storage is not None and (None in entries.values() or not wanted)
        if loose and not files.resolve(str(storage)).is_dir():
            how = self.cfg.how_to_get or f"Set this key to the folder that holds the {self.media}."
            missing.append(f"datasets.{self.name}.build_info.{self.media}.storage: there is no folder "
                           f"{files.resolve(str(storage))}. {how}")
        return list(dict.fromkeys(fetchable + missing)) if missing or files.offline() else []

    def fetch(self) -> None:
        """Annotation files of all splits, the indexes of remote shards, or the generated data set."""
        for split in self.splits():
            if (entry := self.shards(split)) is not None:
                open_shards(entry, self._key(split), [], several=True)
            for source in self._sources(split) if entry is None else ():
                source.fetch()


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


@registry.register_builder("image_shards")
class ImageShardBuilder(ImageCaptionBuilder):
    """Shards of captioned images; samples as `image_caption`.

    `build_info.annotations.<split>.storage` (or `url`) is a folder, DIR/*.tar or DIR/{000000..000123}.tar;
    `build_info.storage`, where LAVIS has it, is that of the split `train`.
    """

    ignored_keys: ClassVar[Mapping[str, str]] = SHARDS

    def __init__(self, name: str, cfg: ImageDatasetConfig) -> None:
        info = cfg.build_info
        if info.storage and info.annotations:
            raise ConfigError(f"datasets.{name}.build_info.storage has no effect beside build_info.annotations. "
                              "Take it out.")
        if info.storage:
            cfg = copy.copy(cfg)
            cfg.build_info = replace(info, annotations={"train": FileConfig(storage=info.storage)})
        super().__init__(name, cfg)

    def shards(self, split: str) -> FileConfig | None:
        """The entry of a split."""
        return self.cfg.build_info.annotations.get(self._own(split))
