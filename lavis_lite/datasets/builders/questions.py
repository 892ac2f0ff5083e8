"""The builders of questions about images, dialogues and classes among them.

A new data set is a row of YAML that says how its files are written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lavis_lite.config.schema import DatasetConfig, FileConfig
from lavis_lite.datasets.annotations.dialogues import TurnTable, read_dialogues, read_relevance
from lavis_lite.datasets.annotations.layout import Layout
from lavis_lite.datasets.annotations.questions import read_questions
from lavis_lite.datasets.annotations.rows import Row, RowTable, texts
from lavis_lite.datasets.annotations.text_files import json_object, lines_of, read_text
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.base import CLASSES, DIALOGUES, IMAGES, LISTS, QUESTIONS
from lavis_lite.datasets.builders.images import ImageDatasetConfig, ImageTextBuilder
from lavis_lite.datasets.files.image_paths import refuse_outside
from lavis_lite.datasets.files.locate import one_source
from lavis_lite.datasets.media.images import SUFFIXES, ImageFolder, ImagesFolder
from lavis_lite.datasets.qa import Learn, QADataset, QAEvalDataset
from lavis_lite.datasets.shards.dataset import open_shards
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.processors.instruction import Instruction
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


# --- dialogues -------------------------------------------------------------------------------------------------------
@dataclass
class ImageDialogueConfig(ImageQAConfig):
    """Section of a data set of dialogues: VisDial v1.0's or AVSD's file, or lists of conversations as LLaVA's."""

    turn: str = "Q: {} A: {}"
    """an earlier question and its answer as they stand in the history, one per line"""
    asked: Literal["all", "last"] = "all"
    """evaluation: every turn is a question, or only the last one of a dialogue"""
    relevance: dict[str, FileConfig] = field(default_factory=dict)
    """by split: VisDial's dense annotations, [{image_id, round_id, gt_relevance}], for NDCG"""


@registry.register_builder("image_dialogue")
class ImageDialogueBuilder(ImageQABuilder):
    """Dialogues about images: every question with an answer is a sample, what was said before is its `history`.

    Samples as `image_qa`. What was said before stands in front of the question, unless the section's `instruction` puts
    it elsewhere. Evaluation of VisDial: every round with its 100 candidates, and label, the index of the right one.
    There the samples have history str and caption str ("" if there is none), and the task puts them in front.
    """

    config_class: ClassVar[type[DatasetConfig]] = ImageDialogueConfig
    ignored_keys: ClassVar[Mapping[str, str]] = {**IMAGES, **QUESTIONS, **DIALOGUES}
    cfg: ImageDialogueConfig

    def __init__(self, name: str, cfg: ImageDialogueConfig) -> None:
        super().__init__(name, cfg)
        if cfg.turn.count("{}") != 2:
            raise ConfigError(f"datasets.{name}.turn must have two {{}}, for a question and its answer.")
        for key in cfg.columns:
            if key != "image":
                raise ConfigError(f"datasets.{name}.columns.{key} has no effect: of dialogues only the column `image` "
                                  "can be named.")

    def default_instruction(self, training: bool, ranked: bool) -> Callable[..., Any] | None:
        """The history in front of the question: a turn makes no sense without it."""
        return None if ranked and not training else Instruction("chat", draw=False)

    def extras(self) -> Sequence[str]:
        """What was said before, and the image's caption."""
        return ("history", "caption")

    def multiple_choice(self, table: RowTable) -> bool:
        """Whether the rounds come with candidates."""
        return "candidates" in table[0]

    def read(self, paths: Sequence[Path], layout: Layout, training: bool) -> TurnTable:
        """The questions of a split's dialogues."""
        table = read_dialogues(paths, layout, training, self.cfg.turn, last=self.cfg.asked == "last" and not training)
        dense = None if training else self.cfg.relevance.get(layout.split)
        if dense is not None and (dense.storage or dense.url):
            source = one_source(f"datasets.{self.name}.relevance.{layout.split}", dense, self.root)
            table.relevance = read_relevance(source.fetch())
        return table


# --- one folder for each class ---------------------------------------------------------------------------------------
@dataclass
class ImageClassesConfig(ImageQAConfig):
    """Section of a data set of pictures in one folder per class."""

    question: str = "a photo of a"
    """what the model reads before the name of a class"""


class ClassesDataset(QAEvalDataset):
    """Pictures with a class: the question is the same for all, the answer is the class, candidates are all classes."""

    whole_list: ClassVar[bool] = True


@registry.register_builder("image_classes")
class ImageClassesBuilder(ImageQABuilder):
    """Pictures in `<split>/<folder of the class>/` below build_info.images.storage.

    The annotation file of a split names the classes: lines "<folder> <name>[, synonym ...]" (ImageNet's
    LOC_synset_mapping.txt, of which the first name counts), or JSON {folder: name}. Classes of one name are one class.
    """

    config_class: ClassVar[type[DatasetConfig]] = ImageClassesConfig
    eval_dataset: ClassVar[type[Any]] = ClassesDataset
    ignored_keys: ClassVar[Mapping[str, str]] = {**IMAGES, **QUESTIONS, **CLASSES}
    cfg: ImageClassesConfig
    _split = ""
    """the split that is being built"""

    def build(self, split: str, training: bool) -> BaseDataset | None:
        """The data set of a split; None where there is no such split."""
        self._split = split
        return super().build(split, training)

    def read(self, paths: Sequence[Path], layout: Layout, training: bool) -> RowTable:
        """One row per picture: {image, question, question_id, answers, counts}, class by class.

        Raises:
            DataError: a class has no folder, or no class has a picture.
        """
        names, root = class_names(paths[0]), self._media_root(paths)
        lacking = [folder for folder in names if not (root / layout.split / folder).is_dir()]
        if lacking:
            raise DataError(f"{root / layout.split}: has no folder for {len(lacking)} of the {len(names)} classes of "
                            f"{paths[0]}; the first is {lacking[0]!r}. Put the pictures of a class into its folder.")
        others = sorted({path.name for path in (root / layout.split).iterdir() if path.is_dir()} - names.keys())
        if others:
            warnings.warn(f"{root / layout.split}: {len(others)} of its folders are not classes of {paths[0]}, so "
                          f"their pictures are left out; the first is {others[0]!r}.", stacklevel=2)
        table = RowTable(self._rows(names, root / layout.split), paths)
        if not len(table):
            raise DataError(f"{root / layout.split}: the folders of the {len(names)} classes hold no picture.")
        return table

    def _rows(self, names: dict[str, str], root: Path) -> Iterator[tuple[int, int, Row]]:
        files = [(line, name, file) for line, (folder, name) in enumerate(names.items(), 1)
                 for file in sorted((root / folder).iterdir())
                 if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()]
        for number, (line, name, file) in enumerate(files):
            yield 0, line, {"image": f"{root.name}/{file.parent.name}/{file.name}", "question": self.cfg.question,
                            "question_id": number, "answers": [name], "counts": [1]}

    def _candidates(self) -> list[str]:
        (path, *_) = self.annotation_files(self._split)
        return list(dict.fromkeys(class_names(path).values()))


def class_names(path: Path) -> dict[str, str]:
    """Folder -> name of the class.

    Raises:
        DataError: a file of another kind, or fewer than two classes.
    """
    try:
        pairs = list(json_object(path).items()) if path.suffix == ".json" else [
            line.split(maxsplit=1) for line in lines_of(read_text(path)) if line.strip()]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a folder is named twice")
        names = {str(folder): str(name).partition(",")[0].strip() for folder, name in found.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: must have lines '<folder> <name of the class>', or be JSON {{folder: name}} "
                        f"({error}).") from error
    if len(names) < 2 or not all(names.values()):
        raise DataError(f"{path}: names {len(names)} classes; at least two are needed, each with a name.")
    return names
