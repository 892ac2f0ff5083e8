"""The tars of a set of shards: in a folder, or on a web server from which they are fetched one by one.

Fetched tars stay in the cache folder until the least recently used ones have to go: all data sets together keep at most
LAVIS_LITE_SHARD_CACHE_GB (50 by default), or what is in use if that is more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from lavis_lite.datasets.files.locate import file_hash
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.shards.index import ARRAYS, INDEX, Shard, read_index
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.io import atomic, files

LIMIT = "LAVIS_LITE_SHARD_CACHE_GB"
_DEFAULT_GB = 50.0
_STALE_SECONDS = 3600
"""age from which a broken-off download may be removed"""


def cache_folder() -> Path:
    """Folder of all fetched shards."""
    return files.cache_root() / "shards"


def cache_limit() -> int:
    """Bytes that fetched shards may take.

    Raises:
        ConfigError: the environment variable is not a number above 0.
    """
    given = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(given) if given else _DEFAULT_GB
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"{LIMIT}={given!r}: must be a number of gigabytes above 0, for example 50.")
    return int(gigabytes * 1e9)


class LocalShards:
    """Tars in a folder."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.location, self.shards = str(folder), list(shards)
        self._same: set[int] = set()

    def path(self, number: int) -> Path:
        """The tar of that number.

        Raises:
            BadSample: it is later than the index and another one, so the index' texts may not be its own. A tar that
                is only damaged is judged image by image.
        """
        shard = self.shards[number]
        path = Path(self.location) / shard.name
        if number not in self._same and shard.content and path.exists():
            found, index = path.stat(), path.with_name(INDEX).stat()
            if (found.st_mtime_ns > index.st_mtime_ns and found.st_size == shard.bytes
                    and file_hash(path) != shard.content):
                raise BadSample(path, self._changed)
            self._same.add(number)
        return path

    @property
    def _changed(self) -> str:
        return f"has changed since the index was made: python -m lavis_lite data index {self.location} --again"

    def refuse_others(self) -> None:
        """Check that the folder's tars are those of the index, by name and size.

        Raises:
            DataError: the index lacks a tar, or one has become larger.
        """
        sizes = {path.name: path.stat().st_size for path in Path(self.location).glob("*.tar")}
        if more := sorted(sizes.keys() - {shard.name for shard in self.shards}):
            raise DataError(f"{self.location}: {len(more)} of its tars are not in its index, such as {more[0]}. Run: "
                            f"python -m lavis_lite data index {self.location} --again")
        for shard in self.shards:
            if sizes.get(shard.name, 0) > shard.bytes:
                raise DataError(f"{Path(self.location) / shard.name}: {self._changed}.")


class RemoteShards:
    """Tars under a URL (what comes before a shard's name), fetched whole, resumably and checked by their sha256."""

    def __init__(self, url: str, shards: Sequence[Shard]) -> None:
        self.location, self.shards = url.rstrip("/"), list(shards)
        self.folder = remote_folder(url)
        self._failed: dict[int, str] = {}

    def path(self, number: int) -> Path:
        """The tar of that number, fetched if it is not here.

        Raises:
            BadSample: it cannot be fetched, or it is damaged; one process does not try twice.
        """
        target = self.folder / self.shards[number].name
        if target.exists():
            with contextlib.suppress(FileNotFoundError):  # another process may remove it right now: the reader retries
                os.utime(target)
            return target
        if number in self._failed:
            raise BadSample(f"{self.location}/{self.shards[number].name}", self._failed[number])
        shard = self.shards[number]
        make_room(shard.bytes, target)
        try:
            return files.fetch(f"{self.location}/{shard.name}", shard.sha256, to=target)
        except DataError as error:
            self._failed[number] = f"this shard cannot be fetched: {error}"
            raise BadSample(f"{self.location}/{shard.name}", self._failed[number]) from error
        finally:
            _reserve(_part(target), None)


def make_room(needed: int, target: Path) -> None:
    """Remove the least recently used shards until `needed` more bytes fit, and reserve them for `target`.

    A download counts with its whole size from the start, so that many at once stay below the limit too.
    """
    folder, limit = cache_folder(), cache_limit()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        now, total, free = time.time(), 0, []
        for path in [*folder.glob("*/*.tar"), *folder.glob("*/*.tar.part")]:
            stat = path.stat()
            reserved = _reservation(path)
            total += max(stat.st_size, reserved)
            if path != target and (path.suffix == ".tar" or stat.st_mtime < now - _STALE_SECONDS):
                free.append((stat.st_mtime_ns, max(stat.st_size, reserved), path))
        for _, size, path in sorted(free):
            if total + needed <= limit:
                break
            path.unlink()
            _reserve(path, None)
            total -= size
        _part(target).touch()
        _reserve(_part(target), needed)


def _part(target: Path) -> Path:
    """The file in which `files.fetch` collects a download."""
    return target.with_name(target.name + ".part")


def _reserve(part: Path, size: int | None) -> None:
    note = part.with_name(part.name + ".size")
    if size is None:
        note.unlink(missing_ok=True)
    else:
        note.write_text(json.dumps(size))


def _reservation(path: Path) -> int:
    note = path.with_name(path.name + ".size")
    return int(json.loads(note.read_text())) if path.suffix == ".part" and note.exists() else 0


def remote_folder(url: str) -> Path:
    """Folder of the shards that are fetched from under a URL."""
    return cache_folder() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]


def fetch_index(url: str, sha256: str | None = None) -> Path:
    """Folder with the index of remote shards, fetched if it is not here.

    Args:
        url: what comes before a shard's name.
        sha256: of index.json.

    Raises:
        DataError: it cannot be fetched, or is not an index.
    """
    folder, base = remote_folder(url), url.rstrip("/")
    index = folder / INDEX
    if not index.exists() or sha256:
        files.fetch(f"{base}/{INDEX}", sha256, to=index)
    try:
        content = atomic.read_sealed(index)
    except ValueError:  # the kept one is damaged: once more
        index.unlink()
        files.fetch(f"{base}/{INDEX}", sha256, to=index)
        content = read_index(folder)
    try:
        arrays = str(content["arrays"]["sha256"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{index}: not an index of shards ({error!r}).") from error
    files.fetch(f"{base}/{ARRAYS}", arrays, to=folder / ARRAYS)
    return folder
