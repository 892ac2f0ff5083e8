"""Where the files of a section are: on disk, behind a URL, or made by a generator of the package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.config.schema import FileConfig
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io import files
from lavis_lite.mini_world import GENERATORS

MARKERS = ".unpacked"
"""folder of the markers of unpacked archives"""


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


def was_unpacked_into(folder: Path) -> bool:
    """Whether an archive was unpacked into a folder."""
    return (folder / MARKERS).is_dir()
