"""Data sets packed in tars (webdataset's layout), read by offset, so that any sample can be had at any time.

Order, mixing, resume and ranks are the sampler's, as for data sets of loose files. Nothing is unpickled or extracted,
and no command is run: the index names offsets in a shard, and the bytes there are checked before use.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lavis_lite.config.schema import FileConfig
from lavis_lite.datasets.annotations.readers import of_split
from lavis_lite.datasets.annotations.rows import Field, RowErrors, checked
from lavis_lite.datasets.annotations.tables import Row, RowTable
from lavis_lite.datasets.files.locate import SPLITS, ShardNames, names_in, split_of
from lavis_lite.datasets.media.images import MAX_PIXELS, NO_STAMP, BadSample, ImageFolder, Stamp
from lavis_lite.datasets.shards.cache import LocalShards, RemoteShards, fetch_index, remote_folder
from lavis_lite.datasets.shards.index import EXPLODED, INDEX, Location, ShardIndex
from lavis_lite.errors import ConfigError, DataError, did_you_mean
from lavis_lite.io import files

_BLOCK = tarfile.BLOCKSIZE
_OPEN_FILES = 16


# --- reading -------------------------------------------------------------------------------------------------------
class ShardImages(ImageFolder):
    """The images of a set of shards, by name, as `ImageFolder` for loose files; the index says where each one is."""

    def __init__(self, index: ShardIndex, shards: LocalShards | RemoteShards, max_pixels: int = MAX_PIXELS) -> None:
        self.index, self.shards, self.max_pixels = index, shards, max_pixels
        self.root, self.cells = index.folder, None
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "index": self.index.folder, "_open": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, index=ShardIndex(state["index"]))

    def __contains__(self, name: str) -> bool:
        return self.index.find(name) is not None

    def path(self, name: str) -> Path:
        """The tar that holds an image.

        Raises:
            BadSample: none does, or it cannot be fetched.
        """
        return self.shards.path(self._find(name).shard)

    def source(self, name: str) -> tuple[bytes, str]:
        """(content, name in messages) of an image in a shard or of a `data:` address.

        Raises:
            BadSample: there is no such image, or its shard is missing, cut short or damaged; names shard and image.
        """
        content = self.embedded(name)
        if content is not None:
            return content, name[:40]
        at = self._find(name)
        return self._content(at, name), self._label(at, name)

    def file_size(self, name: str) -> int:
        """As the index has it; no shard is read."""
        return self.stamp(name)[0]

    def stamp(self, name: str) -> Stamp:
        """As the index has it; no shard is read."""
        found = self.index.find(name)
        return super().stamp(name) if found is None else (found.size, 0, found.crc)

    def still(self, name: str, stamp: Stamp) -> Stamp | None:
        """The stamp, if an image is still the one of it or cannot be compared; else None."""
        return stamp if self.stamp(name) in (stamp, NO_STAMP) else None

    def _find(self, name: str) -> Location:
        found = self.index.find(name)
        if found is None:
            raise BadSample(name, f"is in none of the shards of {self.shards.location}")
        return found

    def _label(self, at: Location, name: str) -> str:
        return f"{self.shards.location}/{self.shards.shards[at.shard].name}:{name}"

    def _content(self, at: Location, name: str) -> bytes:
        block = self._read(at, name)
        label = self._label(at, name)
        if len(block) < _BLOCK + at.size:
            raise BadSample(label, f"the shard is cut short: it ends at byte {at.offset - _BLOCK + len(block)}, "
                                   f"this image at byte {at.offset + at.size}")
        content = block[_BLOCK:]
        try:
            right = tarfile.TarInfo.frombuf(block[:_BLOCK], "utf-8", "surrogateescape").size == at.size
        except tarfile.HeaderError:
            right = False
        if not right or zlib.crc32(content) != at.crc:
            what = "its bytes are not those that were packed" if right else "there is no image at the index's offset"
            raise BadSample(label, f"the shard is damaged or was changed: {what}")
        return content

    def _read(self, at: Location, name: str) -> bytes:
        """The member's header and content, or less if the file ends before."""
        for _attempt in range(3):
            try:
                return _read_at(self._file(at.shard), at.offset - _BLOCK, _BLOCK + at.size)
            except FileNotFoundError as error:  # the cache may remove a shard between finding and opening it
                missing = error
            except OSError as error:
                raise BadSample(self._label(at, name), f"cannot be read ({error.strerror or error})") from error
        raise BadSample(self._label(at, name), "there is no such shard") from missing

    def _file(self, number: int) -> BinaryIO:
        """The open tar; if many are open, the least recently used one is closed."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        file = self.shards.path(number).open("rb")
        self._open[number] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes at an offset, whatever other processes do with the same open file."""
    if not hasattr(os, "pread"):  # on Windows, where processes are never forked and so share no open file
        file.seek(offset)
        return file.read(size)
    parts, missing = [], size
    while missing:
        part = os.pread(file.fileno(), missing, offset + size - missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


# --- opening -------------------------------------------------------------------------------------------------------
class OpenedShards(NamedTuple):
    """Rows and images of one split; `space` keeps the images' ids apart from other data sets'."""

    table: RowTable
    images: ShardImages
    space: str


def open_shards(cfg: FileConfig, key: str, fields: Sequence[Field], explode: str | None = None,
                keep: Callable[[Row], bool] | None = None, max_pixels: int = MAX_PIXELS,
                several: bool = False) -> OpenedShards:
    """The shards that an annotation entry names.

    Opening reads no row, unless the rows were not checked for these fields, or only some of them count.

    Args:
        cfg: the entry; see `shard_names`.
        key: its key in the configuration, for messages.
        fields, explode, keep: as in `read_table`.
        max_pixels: see `images.load_rgb`.
        several: whether shards of several splits may be among them, as the caller chooses rows itself, or reads none.

    Raises:
        DataError: no index, an index of other shards, shards of several splits, or faulty rows.
    """
    names = names_in(cfg)
    if names is None:
        raise ConfigError(f"{key}.storage: {cfg.storage or cfg.url} names no shards: neither a folder nor *.tar.")
    sha256 = cfg.sha256 if isinstance(cfg.sha256, str) else None
    index = ShardIndex(fetch_index(names.location, sha256) if names.remote else files.resolve(names.location))
    shards = (RemoteShards(names.location, index.shards) if names.remote else
              LocalShards(files.resolve(names.location), index.shards))
    if isinstance(shards, LocalShards) and names.names is None:
        shards.refuse_others()
    if names.names is None and keep is None and not several:
        _refuse_several_splits(index, shards.location, key)
    first, count = _chosen(names, index, key)
    table = index.table([f"{shards.location}/{shard.name}" for shard in index.shards], first, count)
    if keep is None and _is_checked(index, fields) and explode in (None, EXPLODED):
        table = index.exploded(table, first, count) if explode else table
    else:
        errors = RowErrors()
        table = RowTable(checked(table.items(), table.files, fields, errors, explode, keep), table.files)
        errors.stop_if_any()
    if not len(table):
        raise DataError(f"{key}: the shards of {shards.location} hold no rows{of_split(keep) or ' of this split'}.")
    return OpenedShards(table, ShardImages(index, shards, max_pixels), index.space)


def _chosen(names: ShardNames, index: ShardIndex, key: str) -> tuple[int, int]:
    """First and number of the named shards among those of the index."""
    held = [shard.name for shard in index.shards]
    if names.names is None:
        return 0, len(held)
    if names.names[0] not in held:
        raise DataError(f"{key}: {names.names[0]} is not among the shards of {index.folder / INDEX}; "
                        f"{did_you_mean(names.names[0], held)}")
    first = held.index(names.names[0])
    if tuple(held[first:first + len(names.names)]) != names.names:
        raise DataError(f"{key}: {names.names[0]} to {names.names[-1]} are not all there in {index.folder / INDEX}, "
                        f"which has {held[0]} to {held[-1]}.")
    return first, len(names.names)


def _refuse_several_splits(index: ShardIndex, location: str, key: str) -> None:
    held = [shard.name for shard in index.shards]
    splits = sorted({split_of(name.removesuffix(".tar")) for name in held} & SPLITS.keys())
    if len(splits) > 1:
        raise DataError(f"{key}: {location} has shards of several splits ({', '.join(splits)}). Name those of one, "
                        f"such as {location}/train-{{000000..000123}}.tar; the first is {held[0]}.")


def _is_checked(index: ShardIndex, fields: Sequence[Field]) -> bool:
    """Whether every row is known to have these fields."""
    return all(field.name == field.key and index.kinds.get(field.key, field.kind.__name__) == field.kind.__name__
               and (field.key in index.kinds or not field.required) for field in fields)


def shard_sizes(dataset: object) -> list[int] | None:
    """Samples of each shard of a data set, in its order; None if it is not in shards."""
    table, folder = getattr(dataset, "table", None), getattr(dataset, "folder", None)
    return table.file_sizes() if isinstance(folder, ShardImages) and isinstance(table, RowTable) else None


def missing_shards(cfg: FileConfig, key: str, how_to_get: str | None) -> list[str]:
    """Sentences about the missing shards of an entry; nothing is opened or fetched."""
    names = names_in(cfg)
    if names is None:
        text = cfg.storage or cfg.url
        return [f"{key}.storage: {text} is not here. {how_to_get or 'Set this key to the folder of the shards.'}"]
    if names.remote:
        here = (remote_folder(names.location) / INDEX).exists()
        return [] if here or not files.offline() else [
            f"{key}: the index of {names.location} is not in the cache, and LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE "
            "forbids the network."]
    folder = files.resolve(names.location)
    if not folder.is_dir() or not any(folder.glob("*.tar")):
        return [f"{key}.storage: there are no shards in {folder}. "
                f"{how_to_get or 'Set this key to the folder that holds the shards.'}"]
    if not (folder / INDEX).exists():
        return [f"{key}.storage: the shards in {folder} have no index. Write one with: python -m lavis_lite data index "
                f"{folder}"]
    return []
