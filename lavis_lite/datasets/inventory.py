"""Which files of a data set are on this machine, which ones can be fetched, and which are to be put there by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lavis_lite.config.schema import DatasetConfig, FileConfig, StorageConfig
from lavis_lite.datasets.files.archives import Archive
from lavis_lite.datasets.files.locate import Source, names_in, prepare, sources, was_unpacked_into
from lavis_lite.datasets.shards.dataset import missing_shards
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.io import files

MEDIA = ("images", "videos")
Log = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Which files of a data set are here.

    Attributes:
        splits: split -> whether its annotations are here.
        fetchable: splits whose annotations are missing but have a URL.
        media: whether its images or videos are here; None if it names no folder of them.
        archives: whether they come from archives that can be fetched.
        generated: whether a generator of the package makes all of it on first use.
        bytes: of the annotation files that are here.
    """

    splits: dict[str, bool]
    fetchable: list[str]
    media: bool | None
    archives: bool
    generated: bool
    bytes: int

    def __str__(self) -> str:
        if self.generated:
            return "generated on first use"
        missing = [split for split, here in self.splits.items() if not here]
        parts = []
        if missing:
            can = "data prepare brings them" if set(missing) <= set(self.fetchable) else "partly by hand"
            parts.append(f"no annotations of {', '.join(missing)} ({can})")
        if self.media is False:
            parts.append(f"no files ({'data prepare brings them' if self.archives else 'by hand'})")
        return "; ".join(parts) or "here"


def state(name: str, cfg: DatasetConfig) -> State:
    """Which files of a data set are here; nothing is opened or fetched.

    Raises:
        ConfigError: an entry of the section names neither storage nor url.
    """
    entries = cfg.build_info.annotations
    found = {split: _sources(name, split, entry) for split, entry in entries.items()}
    here = {split: all(source.here() for source in found[split]) or
            (names_in(entry) is not None and not missing_shards(entry, "", None)) for split, entry in entries.items()}
    fetchable = [split for split, sources_ in found.items() if not here[split]
                 and all(source.here() or source.fetchable() for source in sources_)]
    paths = {source.target() for sources_ in found.values() for source in sources_}
    media, archives = media_state(cfg)
    return State(here, fetchable, media, archives, cfg.prepare is not None,
                 sum(path.stat().st_size for path in paths if path.is_file()))


def _sources(name: str, split: str, entry: FileConfig) -> list[Source]:
    return sources(f"datasets.{name}.build_info.annotations.{split}", entry, None)


def media_state(cfg: DatasetConfig) -> tuple[bool | None, bool]:
    """(whether the media files are here, whether archives of them can be fetched)."""
    storages = [storage for kind in MEDIA if (storage := getattr(cfg.build_info, kind).storage)]
    if not storages:
        return None, False
    archives, folders = archives_of("", cfg), [files.resolve(storage) for storage in storages]
    whole = all(archive.here() for _, archive in archives)
    by_hand = all(folder.is_dir() and any(folder.iterdir()) and not was_unpacked_into(folder) for folder in folders)
    return by_hand or (whole and all(folder.is_dir() for folder in folders)), bool(archives)


def archives_of(name: str, cfg: DatasetConfig) -> list[tuple[str, Archive]]:
    """(key, archive) of every archive that a section names.

    Raises:
        ConfigError: archives without a folder to unpack them to.
    """
    found = []
    for kind in MEDIA:
        entry: StorageConfig = getattr(cfg.build_info, kind)
        if entry.url is None:
            continue
        key = f"datasets.{name}.build_info.{kind}"
        if entry.storage is None:
            raise ConfigError(f"{key}: give `storage`, the folder that the archives of `url` are unpacked to.")
        each = FileConfig(url=entry.url, sha256=entry.sha256, md5=entry.md5)
        found += [(f"{key}.url", Archive(str(source.url), files.resolve(entry.storage), source.sha256, source.md5))
                  for source in sources(key, each, None)]
    return found


def bring(name: str, cfg: DatasetConfig, keep: bool = False, log: Log = print) -> list[str]:
    """Generate or fetch what can be: annotation files, answer lists, archives of media files.

    Archives that were unpacked are removed, unless they are to be kept.

    Returns:
        What could not be fetched, a sentence each.

    Raises:
        ConfigError: the section is wrong.
    """
    root = prepare(name, cfg.prepare, getattr(cfg, "prepare_args", {}))
    if root is not None:
        log(f"generated: {root}")
        return []
    problems = []
    for source in dict.fromkeys(_all_sources(name, cfg)):
        try:
            log(f"{source.key}: {source.fetch()}")
        except DataError as error:
            problems.append(str(error))
    by_hand, _ = media_state(cfg)
    for key, archive in [] if by_hand else archives_of(name, cfg):
        try:
            archive.bring(keep, log)
        except DataError as error:
            problems.append(f"{key}: {error}")
    return problems


def _all_sources(name: str, cfg: DatasetConfig) -> Iterator[Source]:
    for split, entry in cfg.build_info.annotations.items():
        if names_in(entry) is None:  # shards come while they are read
            yield from _sources(name, split, entry)
    answers: Any = getattr(cfg, "answer_list", None)
    if isinstance(answers, FileConfig) and (answers.url or answers.storage):
        yield from sources(f"datasets.{name}.answer_list", answers, None)
