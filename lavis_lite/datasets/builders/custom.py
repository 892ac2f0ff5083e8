"""The builder for files of your own: captions, or questions and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lavis_lite.config.schema import DatasetConfig
from lavis_lite.datasets.annotations.readers import Columns, guess_columns
from lavis_lite.datasets.annotations.rows import Field, file_name, identifier, texts
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.builders.images import ImageDatasetConfig, ImageTextBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.registry import registry

KEYS = {"image": "image_column", "caption": "caption_column", "question": "question_column",
        "answer": "answer_column", "image_id": "id_column", "question_id": "question_id_column"}
"""what a column holds -> the key of the section that names it"""
KEYS_OF_QUESTIONS = ("answer_column", "choices_column", "question_id_column", "columns")
"""keys that captions do nothing with"""


@dataclass
class CustomConfig(ImageDatasetConfig):
    """Section of the `custom` builder: what the columns of your file are called.

    A column that is not named is guessed by its usual names (`annotations.readers.KNOWN`), and the guess is logged.
    A file with a question column is a set of questions; name `caption_column` to train on its captions instead.
    """

    image_column: str | None = None
    """path of the image, relative to build_info.images.storage (by default the annotation file's folder)"""
    caption_column: str | None = None
    """one caption or a list of them"""
    question_column: str | None = None
    """the question about the image"""
    answer_column: str | list[str] | None = None
    """one answer or a list of them; or several columns with one answer each"""
    choices_column: str | None = None
    """list of the answers to choose among"""
    id_column: str | None = None
    """number or name of the image, for result files"""
    question_id_column: str | None = None
    """number or name of the question, for result files; absent: the row's number"""


class _Captions(ImageTextBuilder):
    """Captions in columns of any name."""

    cfg: CustomConfig

    def __init__(self, name: str, cfg: CustomConfig, columns: dict[str, Any]) -> None:
        super().__init__(name, cfg)
        self.columns = columns

    def refuse_unknown_columns(self) -> None:
        """Left to `CustomBuilder`: captions have their own keys for the names of columns."""

    def image_columns(self) -> Sequence[str]:
        """The image's column."""
        return (str(self.columns.get("image", "image")), str(self.columns.get("image_id", "image_id")))

    def fields(self, training: bool) -> list[Field]:
        """Columns by the names that the section gives, or by those that were guessed."""
        caption = Field("caption", texts, self.columns.get("caption", "caption"),
                        training or self.cfg.captions_required)
        number = [Field("image_id", identifier, self.columns["image_id"], required=bool(self.cfg.id_column))
                  ] if "image_id" in self.columns else []
        return [Field("image", file_name, self.columns.get("image", "image")), caption, *number]


@registry.register_builder("custom")
class CustomBuilder(BaseDatasetBuilder):
    """Your own JSON, JSONL, CSV or TSV file: an image column, and captions or questions with answers.

    Samples as `image_caption`, or as `image_qa` if the file has a question column.
    """

    config_class: ClassVar[type[DatasetConfig]] = CustomConfig
    sample_keys: ClassVar[tuple[str, ...]] = ImageTextBuilder.sample_keys
    ignored_keys: ClassVar[Mapping[str, str]] = ImageTextBuilder.ignored_keys
    media: ClassVar[str] = "images"
    cfg: CustomConfig

    def __init__(self, name: str, cfg: CustomConfig) -> None:
        super().__init__(name, cfg)
        if cfg.caption_column and (cfg.question_column or cfg.answer_column):
            raise ConfigError(f"datasets.{name}: caption_column and question_column exclude each other; a data set has "
                              "captions or questions. Set one of the two to null, or write two data sets.")
        self._files = _Captions(name, cfg, self._named())

    def splits(self) -> list[str]:
        """Splits with their own file, those of split_values, and val if val_fraction makes one."""
        return self._files.splits()

    def build(self, split: str, training: bool) -> Any | None:
        """The data set of a split; None if there is no such split. Fetches annotation files that have a URL."""
        return self.reader.build(split, training) if split in self.splits() else None

    def missing_files(self, splits: Sequence[str] | None = None) -> list[str]:
        """One finished sentence per file that is not here."""
        return self._files.missing_files(splits)

    def fetch(self) -> None:
        """Bring annotation files here that have a URL."""
        self._files.fetch()

    @cached_property
    def reader(self) -> ImageTextBuilder:
        """The builder of captions or of questions, with the columns of the file.

        Raises:
            DataError: the file is unreadable, or has no column that could be what is needed.
        """
        columns = self._columns()
        if "question" not in columns:
            self._refuse_keys_of_questions()
            return _Captions(self.name, self.cfg, columns)
        shared = {field.name: getattr(self.cfg, field.name) for field in fields(ImageDatasetConfig)}
        names = {"answers" if key == "answer" else key: value for key, value in columns.items() if key != "caption"}
        if self.cfg.choices_column:
            names["choices"] = self.cfg.choices_column
        made = ImageQABuilder(self.name, ImageQAConfig(**{**shared, "columns": {**names, **self.cfg.columns}}))
        named = {"answers" if key == "answer" else key for key in self._named()}
        made.guessed_columns = tuple(names.keys() - named - {"choices"} - self.cfg.columns.keys())
        return made

    def _refuse_keys_of_questions(self) -> None:
        key = next((key for key in KEYS_OF_QUESTIONS if getattr(self.cfg, key)), None)
        if key is not None:
            hint = ("name the columns of captions by image_column, caption_column and id_column"
                    if key == "columns" else
                    "the data set has captions; set question_column if it has questions")
            raise ConfigError(f"datasets.{self.name}.{key} has no effect: {hint}. Take it out.")

    def _named(self) -> dict[str, Any]:
        """Columns that the section names."""
        return {key: getattr(self.cfg, name) for key, name in KEYS.items() if getattr(self.cfg, name)}

    def _columns(self) -> dict[str, Any]:
        """Columns that the section names, and guesses for the others it needs."""
        named = self._named()
        wanted = ("image", "caption") if "caption" in named else ("image", "question", "answer")
        path = None if all(key in named for key in wanted) else self._first_file()
        if path is None:
            return named
        guessed = guess_columns(path, form=self._files.file_format())
        found = self._chosen(path, guessed, named)
        log = {key: name for key, name in found.items() if key not in named}
        from lavis_lite import distributed

        if log and distributed.is_main():
            print(f"datasets.{self.name}: columns of {path.name}: {guessed.describe(tuple(log))}", flush=True)
        if "split" in guessed.found and self.cfg.split_column is None and distributed.is_main():
            print(f"datasets.{self.name}: all rows of {path.name} are used; to choose among them by its column "
                  f"{guessed.found['split']!r} set split_column", flush=True)
        return {**found, **named}

    def _chosen(self, path: Path, guessed: Columns, named: dict[str, Any]) -> dict[str, Any]:
        """The columns to read.

        Raises:
            DataError: the file lacks one.
        """
        found = {**guessed.found, **named}
        asks = "caption" not in named and "question" in found
        wanted = ("image", "question") if asks else ("image", "caption")
        lacking = [key for key in wanted if key not in found and not (key == "image" and self.cfg.image_pattern)]
        if lacking:
            keys = " and ".join(f"datasets.{self.name}.{KEYS[key]}" for key in lacking)
            raise DataError(f"{path}: no column looks like {' or '.join(lacking)}; it has: "
                            f"{', '.join(guessed.present) or 'none'}. Set {keys} to the column's name.")
        kept = (*wanted, "image_id", *(("answer", "question_id") if asks else ()))
        return {key: found[key] for key in kept if key in found}

    def _first_file(self) -> Path | None:
        """The file whose columns are looked at; None: its rows are in shards."""
        split = next(iter(self.cfg.build_info.annotations), None)
        if split is None or self._files.shards(split) is not None:
            return None
        return self._files.annotation_files(split)[0]
