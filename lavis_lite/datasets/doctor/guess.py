"""A lone file of annotations -> the section of a data set that reads it, its columns guessed by their names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from lavis_lite.config.schema import BuildInfo, DatasetConfig, FileConfig, StorageConfig
from lavis_lite.datasets.annotations.readers import read_rows
from lavis_lite.datasets.builders.custom import CustomConfig
from lavis_lite.datasets.builders.questions import ImageQAConfig
from lavis_lite.errors import ConfigError, DataError, did_you_mean

KNOWN = {
    "image": ("image", "file_name", "filename", "image_path", "image_file", "img", "img_path", "path", "file",
              "filepath", "file_path", "image_name"),
    "caption": ("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "title", "description", "alt",
                "alt_text", "txt"),
    "question": ("question", "query", "sent", "problem"),
    "answer": ("answer", "answers", "direct_answers", "answer_text", "label", "response"),
    "image_id": ("image_id", "img_id"),
    "question_id": ("question_id", "qid"),
}
"""what a column holds -> names it goes by, the likeliest first; letter case does not matter"""
_LOOK_AT = 100
"""rows whose columns are looked at"""


def guess(path: Path, image_root: Path | None = None,
          named: Mapping[str, str] | None = None) -> tuple[DatasetConfig, list[str]]:
    """A section (of the builder `image_qa` where there are questions, else `custom`) and what was guessed, in words.

    Args:
        path: JSON, JSONL, CSV or TSV.
        image_root: folder of the images; by default the file's.
        named: columns that the caller knows: key of KNOWN -> name in the file.

    Raises:
        DataError: the file is unreadable, empty, or has no column that could be what is needed.
        ConfigError: `named` has a key that KNOWN lacks.
    """
    for key in named or {}:
        if key not in KNOWN:
            raise ConfigError(f"--columns {key}=...: no such column; {did_you_mean(key, KNOWN)}")
    present = _columns(path)
    found = {key: column for key in KNOWN if (column := _named(key, present, named or {}))}
    root = (image_root or path.parent).absolute()
    info = BuildInfo(annotations={"train": FileConfig(storage=str(path.absolute()))},
                     images=StorageConfig(storage=str(root)))
    text = "question" if "question" in found else "caption"
    lacking = [key for key in ("image", text) if key not in found]
    if lacking:
        raise DataError(f"{path}: no column looks like {' or '.join(lacking)}; it has: {', '.join(present) or 'none'}. "
                        f"Say which: --columns {' '.join(f'{key}=NAME' for key in lacking)}")
    notes = [f"columns: {', '.join(f'{key} = {column!r}' for key, column in found.items())}", f"images in {root}"]
    if text == "question":
        columns: dict[str, str | list[str]] = dict(found)
        columns.pop("caption", None)
        return ImageQAConfig(builder="image_qa", build_info=info, columns=columns), notes
    return CustomConfig(builder="custom", build_info=info, image_column=found["image"],
                        caption_column=found["caption"], id_column=found.get("image_id")), notes


def _named(key: str, present: list[str], named: Mapping[str, str]) -> str | None:
    if key in named:
        return named[key]
    by_lower = {column.lower(): column for column in reversed(present)}
    return next((by_lower[name] for name in KNOWN[key] if name in by_lower), None)


def _columns(path: Path) -> list[str]:
    """Columns of the first rows, in order of appearance."""
    rows = (row for _, row in itertools.islice(read_rows(path), _LOOK_AT))
    seen = dict.fromkeys(str(column) for row in rows if isinstance(row, dict) for column in row)
    return list(seen)
