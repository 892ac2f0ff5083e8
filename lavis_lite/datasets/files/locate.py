"""Where the files of a section are: on disk, behind a URL, or made by a generator of the package; and their kinds.

A path or URL of a section names an annotation file, a folder of tables, or shards.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.config.schema import DatasetConfig, FileConfig
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io import files
from lavis_lite.mini_world import GENERATORS

MARKERS = ".unpacked"
"""folder of the markers of unpacked archives"""
COLUMNAR = (".parquet", ".arrow", ".feather")
TEXT_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
HASHED, BLOCK = 256, 4096
"""blocks of a file that are hashed, and bytes of each"""
SHARD_INDEX = "index.json"
"""of a folder of shards"""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Source:
    """One annotation file: `url`, `storage`, `sha256` and `md5` as in FileConfig.

    Args:
        key: its key in the configuration, for messages.
        root: folder of generated files, looked at first.
    """

    key: str
    url: str | None
    storage: str | None
    sha256: str | None = None
    md5: str | None = None
    root: Path | None = None

    def target(self) -> Path:
        """The file's path, whether it is there or not."""
        if self.storage is None:
            return files.target_of(self.url) if self.url and files.is_url(self.url) else files.resolve(self.url or "")
        generated = self.root / self.storage if self.root else None
        return generated if generated is not None and generated.exists() else files.resolve(self.storage)

    def here(self) -> bool:
        """Whether the file is on this machine."""
        return self.target().exists() or self._local_url() is not None

    def fetchable(self) -> bool:
        """Whether `fetch` can get it over the network."""
        return self.url is not None and files.is_url(self.url)

    def _local_url(self) -> Path | None:
        """A `url` that is a local file is read where it is; LAVIS copies it."""
        if self.url is None or files.is_url(self.url):
            return None
        path = files.resolve(self.url.removeprefix("file://"))
        return path if path.exists() else None

    def fetch(self) -> Path:
        """The local file, downloaded if need be.

        A file that is already here is taken as it is: the hash is the published file's, and you may use your own.

        Raises:
            DataError: not here and cannot be fetched.
        """
        target = self.target()
        if target.exists():
            return target
        if self.url is None:
            raise DataError(self.how_to_get())
        return self._local_url() or files.fetch(self.url, self.sha256, self.md5, to=target)

    def how_to_get(self) -> str:
        """A sentence: what is missing and how to get it."""
        if self.fetchable():
            command = files.fetch_command(str(self.url), self.target())
            return f"{self.key}: {self.target()} is not here. Get it with: {command}"
        return f"{self.key}.storage: {self.target()} is not here. Put the file there or set the key to where it is."


def sources(key: str, cfg: FileConfig, root: Path | None) -> list[Source]:
    """The files of one split.

    Raises:
        ConfigError: neither storage nor url, or lists of unequal length.
    """
    columns: dict[str, list[str | None]] = {}
    for name in ("url", "storage", "sha256", "md5"):
        value = getattr(cfg, name)
        columns[name] = [] if value is None else [value] if isinstance(value, str) else list(value)
    length = max(map(len, columns.values()))
    if not (columns["url"] or columns["storage"]):
        raise ConfigError(f"{key}: give `storage` (where the file is), `url` (where it comes from), or both.")
    for name, values in columns.items():
        if len(values) not in (0, length):
            raise ConfigError(f"{key}.{name} has {len(values)} entries, but the others have {length}.")
    rows = zip(*(values or [None] * length for values in columns.values()), strict=True)
    return [Source(key, url, storage, sha256, md5, root) for url, storage, sha256, md5 in rows]


def one_source(key: str, cfg: FileConfig, root: Path | None) -> Source:
    """The one file of an entry; a ConfigError if it is several."""
    found = sources(key, cfg, root)
    if len(found) > 1:
        raise ConfigError(f"{key}: names {len(found)} files; it is one file.")
    return found[0]


def prepare(name: str, generator: str | None, arguments: Mapping[str, Any]) -> Path | None:
    """Run the generator that a section names; the folder of its files, or None.

    Without a `root` argument the folder is <cache>/<generator>/<its arguments>, so that worlds of other sizes or
    seeds do not overwrite each other.

    Raises:
        ConfigError: unknown generator or arguments.
        DataError: the folder holds something else or cannot be written.
    """
    if not generator:
        return None
    if generator not in GENERATORS:
        hint = did_you_mean(generator, GENERATORS)
        raise ConfigError(f"datasets.{name}.prepare: unknown generator {generator!r}: {hint}")
    settings = dict(arguments)
    label = ",".join(f"{key}={value}" for key, value in sorted(settings.items()) if key != "workers") or "default"
    root = files.resolve(settings.pop("root", None) or files.cache_root() / generator / label)
    module, _, function = GENERATORS[generator].partition(":")
    try:
        return Path(getattr(importlib.import_module(module), function)(root, **settings))
    except TypeError as error:
        raise ConfigError(f"datasets.{name}.prepare_args: {error}.") from error


def annotation_hashes(section: DatasetConfig) -> dict[str, str]:
    """Size and hash of every annotation file that exists on this machine; its path does not count."""
    hashes = dict[str, str]()
    for split, file in section.build_info.get("annotations", {}).items():
        stored = file.get("storage")
        for number, name in enumerate(stored if isinstance(stored, list) else [stored], 1):
            path = None if name is None or files.is_url(str(name)) else files.resolve(name)
            if path is not None and path.is_file():
                hashes[f"content of {split} annotation file {number}"] = file_hash(path)
    return hashes


def file_hash(path: Path) -> str:
    """Size, and a hash of evenly spaced blocks with both ends among them: at most 1 MB is read."""
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for offset in sorted({number * max(0, size - BLOCK) // (HASHED - 1) for number in range(HASHED)}):
            file.seek(offset)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"


def file_state(path: Path) -> str:
    """What tells a file from what it was: times, and `file_hash`.

    A file that is replaced can keep its size and the time that programs set (`rsync -t`, tar). It cannot keep the time
    at which the system saw the change. Both stay if it is replaced at once; then its content tells.
    """
    stat = path.stat()
    return f"{stat.st_mtime_ns} {stat.st_ctime_ns} {file_hash(path)}"


def was_unpacked_into(folder: Path) -> bool:
    """Whether an archive was unpacked into a folder."""
    return (folder / MARKERS).is_dir()


# --- tables -----------------------------------------------------------------------------------------------------------
SPLITS = {"train": ("train", "training", "restval"), "val": ("val", "valid", "validation", "dev"),
          "test": ("test", "testing")}
"""split -> its usual names: of folders, files, and values of a column; restval is Karpathy's, and is trained on"""
_SHARD = re.compile(r"(.+)-\d+-of-\d+")
"""stem of one of several files of a split, as the Hugging Face hub has them"""
_WORDS = re.compile(r"[\W\d_]+")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def table_files(folder: Path) -> list[Path]:
    """The annotation files of one split in a folder; [] if it holds none.

    They are those of a saved data set (`state.json`), the metadata of an imagefolder, all Parquet files, or text files
    named by their splits.

    Raises:
        DataError: a saved data set lists no files; or the folder holds several splits, or files of several kinds.
    """
    if not folder.is_dir():
        return []
    splits = splits_in(folder)
    if len(splits) > 1:
        raise DataError(f"{folder}: has several splits ({', '.join(splits)}). Write a recipe "
                        f"that names their files: python -m lavis_lite data check {folder} --write-yaml recipe.yaml")
    return next(iter(splits.values()), [])


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """Split -> its annotation files, of a folder of any of the kinds.

    A file's split is a word of its name. Files without such a word are "train", unless another file is.
    """
    own = (_files_in(folder) or _files_in(folder / "data") or _text_files(folder) or
           _text_files(folder / "annotations"))
    if own and own[0].name.startswith("data-"):  # of a saved data set
        return {"train": own}
    words = [split_of(path.stem) for path in own]
    rest = "" if "train" in words else "train"
    named = [(word or rest or path.stem, [path]) for word, path in zip(words, own, strict=True)] or [
        (inner.name, _files_in(inner) or (_text_files(inner) if split_of(inner.name) else []))
        for inner in sorted(folder.iterdir()) if inner.is_dir()]
    found: dict[str, list[Path]] = {}
    for name, paths in named:
        if paths:
            split = next((split for split, names in SPLITS.items() if name.lower() in names), name)
            found[split] = [*found.get(split, []), *paths]
    return found


def split_of(stem: str) -> str:
    """The split that a file's name tells: train-00000-of-00002, flickr_test, val2014; "": no or several."""
    if shard := _SHARD.fullmatch(stem):
        return next((split for split, names in SPLITS.items() if shard[1].lower() in names), shard[1])
    words = set(_WORDS.split(stem.lower()))
    found = [split for split, names in SPLITS.items() if words.intersection(names)]
    return found[0] if len(found) == 1 else ""


def _files_in(folder: Path) -> list[Path]:
    """The annotation files in a folder itself."""
    if (folder / "state.json").is_file():
        return _saved(folder)
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    return metadata[:1] or (sorted(folder.glob("*.parquet")) if not any(folder.glob("*.tar")) else [])


def _text_files(folder: Path) -> list[Path]:
    """Files of a folder named by their split and alike otherwise, or its only file; no shards' own.

    Raises:
        DataError: there are several kinds of names, and not one of captions.
    """
    if any(folder.glob("*.tar")) or (folder / SHARD_INDEX).exists():
        return []
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in TEXT_FILES)
    splits = {name for names in SPLITS.values() for name in names}
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for path in found:
        if split_of(path.stem):
            kind = (*(word for word in _WORDS.split(path.stem.lower()) if word not in splits), path.suffix.lower())
            kinds.setdefault(kind, []).append(path)
    of_captions = [kind for kind in kinds if "captions" in kind]
    if len(kinds) > 1 and len(of_captions) != 1:
        names = ", ".join(paths[0].name for paths in kinds.values())
        raise DataError(f"{folder}: has annotation files of several kinds: {names}. Name a file instead of the folder.")
    return kinds[(of_captions or list(kinds))[0]] if kinds else found if len(found) == 1 else []


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


def is_columnar(path: Path) -> bool:
    """Whether a file is Parquet or Arrow by its name."""
    return path.suffix.lower() in COLUMNAR


# --- shards --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ShardNames:
    """The shards that a configuration names.

    Attributes:
        location: a folder, or what comes before the names in a URL.
        names: of the shards; None: all that the index lists.
    """

    location: str
    names: tuple[str, ...] | None

    @property
    def remote(self) -> bool:
        """Whether they are behind a URL."""
        return files.is_url(self.location)


def shard_names(text: str) -> ShardNames | None:
    """Parse "DIR/{000000..000123}.tar", "DIR/*.tar", "DIR/000000.tar", a folder, or the same as a URL.

    None if it is none of these: an annotation file.
    """
    if not text.endswith(".tar"):
        folder = text.endswith("/") if files.is_url(text) else is_shard_folder(files.resolve(text))
        return ShardNames(text, None) if folder else None
    location, _, pattern = text.rpartition("/")
    return ShardNames(location or ".", None if pattern == "*.tar" else tuple(_expand(pattern, text)))


def is_shard_folder(path: Path) -> bool:
    """Whether a path is a folder that may hold shards: it holds no annotation files."""
    return path.is_dir() and not splits_in(path)


def _expand(pattern: str, text: str) -> list[str]:
    found = _RANGE.search(pattern)
    if found is None:
        if set(pattern) & set("{}*?"):
            raise ConfigError(f"{text}: shards are named by {{000000..000123}}.tar, *.tar or one file.")
        return [pattern]
    first, last = found.groups()
    return [f"{pattern[:found.start()]}{number:0{len(first)}d}{pattern[found.end():]}"
            for number in range(int(first), int(last) + 1)]


def names_in(cfg: FileConfig) -> ShardNames | None:
    """The shards that an annotation entry names: `storage` if something is there, else `url`; None: plain files."""
    storage, url = (value[0] if isinstance(value, list) and len(value) == 1 else value
                    for value in (cfg.storage, cfg.url))
    local = shard_names(storage) if isinstance(storage, str) else None
    remote = shard_names(url) if isinstance(url, str) else None
    if local is not None and (remote is None or (files.resolve(local.location) / SHARD_INDEX).exists()):
        return local
    return remote
