"""A lone file of annotations, or a folder of shards -> the section of a data set that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lavis_lite.config.schema import BuildInfo, DatasetConfig, FileConfig, StorageConfig
from lavis_lite.datasets.annotations.columns import KNOWN, Columns, guess_columns, split_values
from lavis_lite.datasets.annotations.text_files import AUTO, FileFormat
from lavis_lite.datasets.builders.custom import CustomConfig
from lavis_lite.datasets.builders.dialogue import ImageDialogueConfig
from lavis_lite.datasets.builders.images import ImageDatasetConfig
from lavis_lite.datasets.builders.questions import ImageQAConfig
from lavis_lite.datasets.shards.scan import needs_index
from lavis_lite.errors import ConfigError, DataError, did_you_mean


def guess(path: Path, image_root: Path | None = None,
          named: Mapping[str, str] | None = None, form: FileFormat = AUTO) -> tuple[DatasetConfig, list[str]]:
    """A section that reads a file or a folder of shards, and what was guessed, in words.

    A file with a `conversations` column is read by `image_dialogue`, a file with questions by `image_qa`, a folder by
    `image_shards`, and any other file by `custom`.

    Args:
        path: JSON, JSONL, CSV or TSV, or a folder with tars and their index.
        image_root: folder of the images; by default the file's.
        named: columns that the caller knows: key of KNOWN -> name in the file.
        form: how the file is written, as far as that is known.

    Raises:
        DataError: the file is unreadable, empty, or has no column that could be what is needed.
        ConfigError: `named` has a key that KNOWN lacks.
    """
    for key in named or {}:
        if key not in KNOWN:
            raise ConfigError(f"--columns {key}=...: no such column; {did_you_mean(key, KNOWN)}")
    if path.is_dir():
        return _shards(path)
    columns = guess_columns(path, named, form)
    root = (image_root or path.parent).absolute()
    info = BuildInfo(annotations={"train": FileConfig(storage=str(path.absolute()))},
                     images=StorageConfig(storage=str(root)))
    text = next((key for key in ("conversations", "question") if key in columns.found), "caption")
    _refuse_lacking(path, columns, text)
    section, notes = _section(columns, text, info), [f"columns: {columns.describe()}", f"images in {root}"]
    section.delimiter, section.quoting, section.encoding = form.delimiter, form.quoting, form.encoding
    notes += _choose_splits(path, columns, section)
    used = {section.split_column, *_named_in(section)}
    unread = [repr(column) for column in columns.present if column not in used]
    return section, notes + ([f"columns that are not read: {', '.join(unread)}"] if unread else [])


def _choose_splits(path: Path, columns: Columns, section: ImageDatasetConfig) -> list[str]:
    """Let the section use a column with names of splits; a note if there is a column of that name with other values."""
    column = columns.found.get("split")
    if column is None:
        return []
    form = FileFormat(section.delimiter, section.quoting, section.encoding)
    values = split_values(path, column, form)
    if values:
        section.split_column, section.split_values = column, values
        return []
    return [f"column {column!r} holds other values than train, val and test, so that rows of all of them are used; to "
            "choose among them set split_column and split_values"]


def _named_in(section: ImageDatasetConfig) -> list[str]:
    """Columns that a section reads."""
    if isinstance(section, CustomConfig):
        return [name for name in (section.image_column, section.caption_column, section.id_column) if name]
    names = [name for name in section.columns.values() if isinstance(name, str)]
    return [*names, "conversations"] if isinstance(section, ImageDialogueConfig) else names


def _section(columns: Columns, text: str, info: BuildInfo) -> ImageDatasetConfig:
    """The section that reads a file with these columns."""
    found = columns.found
    if text == "conversations":
        return ImageDialogueConfig(builder="image_dialogue", build_info=info, columns={"image": found["image"]})
    if text == "question":
        kept = ("image", "question", "answer", "image_id", "question_id")
        names: dict[str, str | list[str]] = {key: found[key] for key in kept if key in found}
        return ImageQAConfig(builder="image_qa", build_info=info, columns=names)
    return CustomConfig(builder="custom", build_info=info, image_column=found["image"],
                        caption_column=found["caption"], id_column=found.get("image_id"))


def _refuse_lacking(path: Path, columns: Columns, text: str) -> None:
    lacking = [key for key in ("image", text) if key not in columns.found]
    if lacking:
        raise DataError(f"{path}: no column looks like {' or '.join(lacking)}; it has: "
                        f"{', '.join(columns.present) or 'none'}. "
                        f"Say which: --columns {' '.join(f'{key}=NAME' for key in lacking)}")


def _shards(folder: Path) -> tuple[DatasetConfig, list[str]]:
    """The section that reads a folder of tars.

    Raises:
        DataError: the folder has no tars, or they have no index.
    """
    if needs_index(folder, again=False):
        raise DataError(f"{folder}: its tars have no index yet. Make it with: python -m lavis_lite data index {folder}")
    info = BuildInfo(annotations={"train": FileConfig(storage=str(folder.absolute()))})
    return ImageDatasetConfig(builder="image_shards", build_info=info), [f"shards in {folder.absolute()}"]
