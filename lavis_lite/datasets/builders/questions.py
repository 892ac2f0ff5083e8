"""The builder of questions about images. A new data set is a row of YAML that says how its files are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig, FileConfig
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.questions import read_questions
from lavis_lite.datasets.annotations.rows import RowTable, texts
from lavis_lite.datasets.annotations.text_files import json_object
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.base import IMAGES, LISTS, QUESTIONS
from lavis_lite.datasets.builders.images import ImageDatasetConfig, ImageTextBuilder
from lavis_lite.datasets.files.image_paths import refuse_outside
from lavis_lite.datasets.files.locate import one_source
from lavis_lite.datasets.media.images import ImageFolder, ImagesFolder
from lavis_lite.datasets.qa import Learn, QADataset, QAEvalDataset
from lavis_lite.datasets.shards.dataset import open_shards
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.registry import registry


@dataclass
class ImageQAConfig(ImageDatasetConfig):
    """Section of a data set of questions about images.

    The files of a split are read together: official VQA files (questions and annotations are joined by question_id),
    COCO files (their `images` name the pictures), flat lists with LAVIS' columns, or any mix of them.
    """

    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """what a column is called in the files, where it is not called so: question, question_id, image, image_id,
    answers (or answer), question_type (such as ScienceQA's subject), answer_type, difficult (true: no direct answer is
    scored, A-OKVQA's rule); answers may be a list of columns with one answer each. Only where they are named here:
    choices (options), answer_index (place of the right one: multiple choice), context (such as a hint), caption,
    ocr_tokens"""
    key_column: str | None = None
    """files that are an object of rows by name: which column that name is"""
    row_files: str | None = None
    """where storage is a folder: its files, one row each ("*/data.json"); key_column is the name of a file's folder"""
    nested: str | None = None
    """column that is a list of objects, each of them a question about the same image"""
    parallel: list[str] = field(default_factory=list)
    """columns that are lists of equal length: their n-th elements are the n-th question"""
    required: list[str] = field(default_factory=list)
    """columns without which (missing, null or empty) a row is left out"""
    join_column: str | None = None
    """of the split's files, those whose rows have no question are about images (OCR tokens); this column joins them"""
    answer_words: dict[str, str] = field(default_factory=dict)
    """value of the answer column -> the word for it, for labels {"0": "no", "1": "yes"}; these words are the choices"""
    answer_list: FileConfig = field(default_factory=FileConfig)
    """JSON list of answers to choose among (run.inference_method=rank), or LAVIS' {answer: number}; absent: those of
    the training split, by frequency"""
    learn: Learn = "answer"
    """question: the model reads an answer and learns to ask"""
    question_types: dict[str, list[str]] = field(default_factory=dict)
    """split -> the question types that count there, such as {train: [color, count]}; the others are held out. A split
    that is not named has all"""


@registry.register_builder("image_qa")
class ImageQABuilder(ImageTextBuilder):
    """Questions about images with one or several answers each.

    Training samples: `QADataset`. Evaluation samples: `QAEvalDataset`; splits without answers can be predicted on, not
    scored.
    """

    config_class: ClassVar[type[DatasetConfig]] = ImageQAConfig
    sample_keys: ClassVar[tuple[str, ...]] = QADataset.sample_keys
    eval_dataset: ClassVar[type[Any]] = QAEvalDataset
    ignored_keys: ClassVar[Mapping[str, str]] = {**IMAGES, **QUESTIONS}
    several: ClassVar[bool] = False
    """whether a row has several images"""
    cfg: ImageQAConfig

    def __init__(self, name: str, cfg: ImageQAConfig) -> None:
        super().__init__(name, cfg)
        self.guessed_columns: tuple[str, ...] = ()
        self.layout("train")
        self._tables: dict[tuple[str, bool], RowTable] = {}

    def refuse_unknown_columns(self) -> None:
        """Left to `Layout`, which knows the columns of questions."""

    def layout(self, split: str, exists: Callable[[str], bool] | None = None) -> Layout:
        """How the files of a split are written.

        Args:
            exists: whether there is an image of that name.

        Raises:
            ConfigError: a column or a pattern that cannot be.
        """
        cfg = self.cfg
        try:
            return Layout({"image": self.media[:-1], **cfg.columns}, self.pattern_of(split), cfg.key_column, split,
                          self.row_filter(split), nested=cfg.nested, parallel=cfg.parallel, required=cfg.required,
                          join_column=cfg.join_column, answer_words=cfg.answer_words, row_files=cfg.row_files,
                          exists=exists, form=self.file_format(), guessed=self.guessed_columns, several=self.several,
                          types=cfg.question_types.get(split, ()))
        except ConfigError as error:
            raise ConfigError(f"datasets.{self.name}.{error}") from error

    def build(self, split: str, training: bool) -> BaseDataset | None:
        """The data set of a split; None where there is no such split. Fetches annotation files that have a URL."""
        if split not in self.splits():
            return None
        vis, text = self.processor("vis_processor", training), self.processor("text_processor", training)
        instruction = self.instruction(training)
        table, folder, space = self.open_rows(split, training)
        folder = self.with_arrays(folder)
        instruction = instruction or self.default_instruction(training, self.multiple_choice(table))
        if training:
            return QADataset(table, self.kept_features(vis, folder) or folder, vis, text, instruction, space,
                             self.cfg.learn, self.extras())
        return self.eval_dataset(table, folder, vis, text, instruction, space, self._training_rows, self._candidates(),
                                 self.cfg.learn, self.extras(), self.multiple_choice(table))

    def open_rows(self, split: str, training: bool) -> tuple[RowTable, ImageFolder, str]:
        """Rows of a split, its images, and what keeps their ids apart from other sets'.

        Shards hold the rows as `data shard` found them: checked, and those of the split only.
        """
        entry = self.shards(split)
        if entry is None:
            table, paths = self._read(split, training)
            return table, self.folder_of(paths), self._storage() or self.name
        if self.row_filter(split) is not None:
            raise ConfigError(f"{self._key(split)}: shards of questions hold the rows of one split; pack each split "
                              "into shards of its own.")
        opened = open_shards(entry, self._key(split), [], max_pixels=self.cfg.max_pixels)
        if split in self.cfg.question_types:
            raise ConfigError(f"{self._key(split)}: shards hold all question types that were packed; take "
                              f"datasets.{self.name}.question_types.{split} out, or name annotation files.")
        lacking = {"question", "question_id", *(["answers", "counts"] if training else [])} - opened.table[0].keys()
        if lacking:
            raise DataError(f"{self._key(split)}: the rows of these shards have no {' and no '.join(sorted(lacking))}; "
                            "pack them with: python -m lavis_lite data shard")
        return opened

    def default_instruction(self, training: bool, ranked: bool) -> Callable[..., Any] | None:
        """What puts a question into a prompt if the section names no `instruction`; None: it stays as it is.

        Args:
            training: whether the split is trained on.
            ranked: whether its rows come with candidates to rank.
        """
        return None

    def extras(self) -> Sequence[str]:
        """Keys of samples besides the question: see `QADataset`."""
        return self.layout("train").extras

    def multiple_choice(self, table: RowTable) -> bool:
        """Whether the rows bring the answers to choose among."""
        return self.layout("train").multiple_choice

    def _read(self, split: str, answers_required: bool) -> tuple[RowTable, list[Path]]:
        paths, key = self.annotation_files(split), (split, answers_required)
        if key not in self._tables:
            table = self.read(paths, self.layout(split, self._exists(paths)), answers_required)
            refuse_outside(table, self._media_root(paths))
            self._tables[key] = table
        return self._tables[key], paths

    def read(self, paths: Sequence[Path], layout: Layout, training: bool) -> RowTable:
        """The rows of a split's files; for training they must have answers."""
        return read_questions(paths, layout, training)

    def shards(self, split: str) -> FileConfig | None:
        """As in the base class; a folder of row_files is none of shards."""
        return None if self.cfg.row_files else super().shards(split)

    def _training_rows(self) -> RowTable | None:
        """The rows of `train` where its files are here; nothing is fetched for it."""
        if "train" not in self.splits():
            return None
        here = self.shards("train") is not None or all(source.here() for source in self._sources("train"))
        return self.open_rows("train", True)[0] if here else None

    def _candidates(self) -> list[str] | None:
        listed = self.cfg.answer_list
        if not (listed.url or listed.storage):
            return None
        path = one_source(f"datasets.{self.name}.answer_list", listed, self.root).fetch()
        try:
            given = json_object(path)
            # LAVIS' {answer: its number}, the commonest first
            return texts(sorted(given, key=lambda answer: given[answer]) if isinstance(given, dict) else given)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: must be a JSON list of answers, or {{answer: number}} ({error}).") from error


@registry.register_builder("images_qa")
class ImagesQABuilder(ImageQABuilder):
    """Questions about several images each, such as NLVR2's pairs: the row's column `image` is a list of file names.

    Samples as `image_qa`, with image float32[3, T, H, W] of the T images of a row, which models read as frames. All
    rows have equally many.
    """

    several: ClassVar[bool] = True
    ignored_keys: ClassVar[Mapping[str, str]] = {**ImageQABuilder.ignored_keys, **LISTS}

    def folder(self, root: Path) -> ImagesFolder:
        """Reader of the images below `root`."""
        return ImagesFolder(root, self.cfg.max_pixels, self.follows_links(root))
