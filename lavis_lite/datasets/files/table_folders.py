"""Folders that hold annotations: `datasets.save_to_disk`, Parquet files of the hub, and Hugging Face's imagefolder."""

from __future__ import annotations

import json
from pathlib import Path

from lavis_lite.errors import DataError

SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""split -> names that folders and files have for it"""
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def table_files(folder: Path) -> list[Path]:
    """The annotation files of one split in a folder; [] if it holds none.

    They are those of a saved data set (`state.json`), the metadata file of an imagefolder, or all Parquet files.

    Raises:
        DataError: a saved data set lists no files; or the folder holds several splits.
    """
    if not folder.is_dir():
        return []
    splits = splits_in(folder)
    if len(splits) > 1:
        raise DataError(f"{folder}: has several splits ({', '.join(splits)}). Write a recipe "
                        f"that names their files: python -m lavis_lite data check {folder} --write-yaml recipe.yaml")
    return next(iter(splits.values()), [])


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """Split -> its annotation files, of a folder of any of the kinds; one split without a name is "train"."""
    own = _files_in(folder) or _files_in(folder / "data")
    if own:
        return _by_name(own)
    return {_split_of(inner.name): files for inner in sorted(folder.iterdir())
            if inner.is_dir() and (files := _files_in(inner))}


def _split_of(name: str) -> str:
    return next((split for split, names in SPLITS.items() if name.lower() in names), name)


def _by_name(files: list[Path]) -> dict[str, list[Path]]:
    """Parquet files `train-00000-of-00002.parquet` by what comes before the first dash."""
    if any("-" not in path.stem for path in files) or files[0].name.startswith("data-"):
        return {"train": files}
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_split_of(path.stem.partition("-")[0]), []).append(path)
    return found


def _files_in(folder: Path) -> list[Path]:
    """The annotation files in a folder itself."""
    if (folder / "state.json").is_file():
        return _saved(folder)
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    return metadata[:1] or (sorted(folder.glob("*.parquet")) if not any(folder.glob("*.tar")) else [])


def _saved(folder: Path) -> list[Path]:
    """The files that a saved data set lists."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'}: lists no files of a saved data set ({error}).") from error
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: its rows are a selection of its files. Save it again with "
                        "`dataset.flatten_indices().save_to_disk(...)`.")
    return files
