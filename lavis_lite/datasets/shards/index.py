"""The index of a folder of shards: the location of each image, and the rows of all samples, mapped instead of read.

    shards/000000.tar ... 000123.tar     webdataset's layout: <key>.jpg, <key>.json per sample
    shards/index.json                    shards with bytes, samples and sha256; kinds of the rows' fields
    shards/index.safetensors             location of each image, and the rows

Images are found by a hash of their name, so that opening costs the same for ten samples and for ten million.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavis_lite.datasets.annotations.tables import ExplodedTable, MappedTable, RowTable
from lavis_lite.datasets.files.locate import SHARD_INDEX
from lavis_lite.datasets.files.mapped import Mapped, write_arrays
from lavis_lite.errors import DataError, shown
from lavis_lite.io import atomic

FORMAT = 2
INDEX, ARRAYS = SHARD_INDEX, "index.safetensors"
PARTS = ".parts"
"""folder of the parts of the index, one per finished shard, until all shards are finished"""
EXPLODED = "caption"
"""the field that may hold several texts per row"""


def name_hash(name: str) -> int:
    """64 bits of an image's name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Shard:
    """One tar; `content` is its `file_hash`, which indexes of earlier versions lack."""

    name: str
    bytes: int
    samples: int
    sha256: str
    content: str = ""


class Location(NamedTuple):
    """Where an image's bytes are."""

    shard: int
    offset: int
    """of its first byte in the tar; its header is in the 512 bytes before"""
    size: int
    crc: int
    """CRC-32 of its bytes"""


class ShardIndex:
    """An opened index.

    Args:
        folder: of index.json and its arrays; the shards may be elsewhere.

    Attributes:
        shards: in order. sha256: of its arrays. space: keeps their images' ids apart from other data sets'.
        kinds: field -> name of the kind of its values.

    Raises:
        DataError: there is no index, or it is damaged or of a later format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._remedy = remedy = f"Rewrite it with: python -m lavis_lite data index {folder} --again"
        content = read_index(folder)
        try:
            self.shards = _shards(content["shards"])
            self.space, self.kinds, self.samples = content["space"], content["kinds"], content["samples"]
            size, self.sha256 = content["arrays"]["bytes"], content["arrays"]["sha256"]
            digest = content["arrays"]["digest"]
            if not isinstance(self.kinds, dict) or not all(
                    isinstance(text, str) for text in (self.space, self.sha256, *self.kinds.values())):
                raise TypeError("its space, kinds or sha256 are not text")
            if self.samples != sum(shard.samples for shard in self.shards):
                raise TypeError(f"{self.samples!r} samples are not those of its shards together")
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / INDEX}: not an index of shards ({error!r}). {remedy}") from error
        arrays = Mapped(folder / ARRAYS, remedy)
        self._hashes, self._starts, self._rows_of = arrays.lazy("hash"), arrays.lazy("starts"), arrays["rows_of"]
        if (arrays.path.stat().st_size != size or arrays.digest != digest
                or len(self._rows_of) != len(self.shards) + 1):
            raise DataError(f"{arrays.path}: not the file that {INDEX} was written with. {remedy}")
        self._locations = [arrays.lazy(name) for name in Location._fields]

    def find(self, name: str) -> Location | None:
        """The location of the image of that name, or None.

        Raises:
            DataError: the index is damaged there.
        """
        index = self._hashes.find(np.uint64(name_hash(name)))
        return None if index is None else Location(*(int(array[index]) for array in self._locations))

    def table(self, names: Sequence[str], first: int = 0, count: int | None = None) -> RowTable:
        """The rows of `count` shards from the `first` on, one per row of the samples' JSON.

        Args:
            names: of the shards in messages.
            first, count: which shards; by default all.
        """
        start, end = self._row_range(first, count)
        return MappedTable(self.folder / ARRAYS, names, start, end, self.sha256, self._remedy)

    def exploded(self, table: RowTable, first: int = 0, count: int | None = None) -> RowTable:
        """The same with one row per caption."""
        start, end = self._row_range(first, count)
        return ExplodedTable(table, EXPLODED, self._starts.part(start, end + 1))

    def _row_range(self, first: int, count: int | None) -> tuple[int, int]:
        last = len(self.shards) if count is None else first + count
        return int(self._rows_of[first]), int(self._rows_of[last])


def _shards(content: Any) -> list[Shard]:
    """The shards of an index's content; a TypeError if they are something else."""
    if not isinstance(content, list):
        raise TypeError("its shards are not a list")
    shards = [Shard(**shard) for shard in content]
    for shard in shards:
        name = shard.name
        # else a name could lead to any file
        if not isinstance(name, str) or set(name) & set("/\\\0") or name in ("", ".", ".."):
            raise TypeError(f"{shown(name)} is not the name of a file in this folder")
        if not (_is_count(shard.bytes) and _is_count(shard.samples) and isinstance(shard.sha256, str)):
            raise TypeError(f"bytes, samples or sha256 of {name} are of another type")
    return shards


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a folder's index.json, checked by its seal.

    Raises:
        DataError: missing, altered, or written by another version.
    """
    path, command = folder / INDEX, f"python -m lavis_lite data index {folder}"
    try:
        content = atomic.read_sealed(path)
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, and this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no index of the shards. Write one with: {command}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be used as an index of shards ({error}). Rewrite it with: {command} "
                        "--again") from error
    return content


# --- writing -------------------------------------------------------------------------------------------------------
class Part:
    """The part of the index for one finished shard.

    Args:
        shard: the tar.
        images: (name, offset, size, crc) of each image.
        rows: (number of the sample in the shard, from 1; row).
    """

    def __init__(self, shard: Shard, images: Sequence[tuple[str, int, int, int]],
                 rows: Sequence[tuple[int, dict[str, Any]]], kinds: dict[str, str]) -> None:
        self.shard = shard
        table = RowTable(((0, number, row) for number, row in rows), [shard.name], kinds)
        held = table.arrays()
        captions = [row.get(EXPLODED) for _, row in rows]
        self.kinds = kinds
        self.arrays: dict[str, NDArray[Any]] = {
            "hash": np.array([name_hash(name) for name, _, _, _ in images], np.uint64),
            "offset": np.array([offset for _, offset, _, _ in images], np.int64),
            "size": np.array([size for _, _, size, _ in images], np.int64),
            "crc": np.array([crc for _, _, _, crc in images], np.uint32),
            "data": held["data"], "lengths": np.diff(held["ends"]), "numbers": held["places"][:, 1].copy(),
            "copies": np.array([len(one) if isinstance(one, list) else 1 for one in captions], np.int64)}

    def save(self, folder: Path, **more: str) -> None:
        """Write it into the index's folder of parts, with `more` facts."""
        facts = {"shard": json.dumps(asdict(self.shard)), "kinds": json.dumps(self.kinds), **more}
        write_arrays(part_path(folder, self.shard.name), self.arrays, facts)


def part_path(folder: Path, shard: str) -> Path:
    """The file of a shard's part."""
    return folder / PARTS / f"{shard}.safetensors"


def part_facts(folder: Path, shard: str) -> dict[str, str] | None:
    """The facts of a finished shard's part; None if there is none, or its file is damaged."""
    path = part_path(folder, shard)
    if not path.exists():
        return None
    try:
        return Mapped(path).facts
    except DataError:
        return None


def write_index(folder: Path, names: Sequence[str], space: str) -> ShardIndex:
    """Join the parts of all shards, in order, into the index, which appears whole or not at all.

    Raises:
        DataError: two images of the same name.
    """
    parts = [Mapped(part_path(folder, name)) for name in names]
    shards = [Shard(**json.loads(part.facts["shard"])) for part in parts]
    kinds = [json.loads(part.facts["kinds"]) for part in parts]
    shared = {field: kind for field, kind in kinds[0].items() if all(one.get(field) == kind for one in kinds)}
    arrays = _joined(parts)
    _check_unique(arrays["hash"], arrays["shard"], shards)
    facts = {"files": json.dumps(names), "kinds": json.dumps(shared)}
    write_arrays(folder / ARRAYS, arrays, facts)
    content = {"format": FORMAT, "space": space, "samples": sum(shard.samples for shard in shards),
               "rows": int(arrays["rows_of"][-1]), "kinds": shared,
               "arrays": {"bytes": (folder / ARRAYS).stat().st_size, "sha256": atomic.file_sha256(folder / ARRAYS),
                          "digest": Mapped(folder / ARRAYS).digest},
               "shards": [asdict(shard) for shard in shards]}
    atomic.write_text(folder / INDEX, atomic.seal(content))
    return ShardIndex(folder)


def _joined(parts: Sequence[Mapped]) -> dict[str, Any]:
    """The arrays of the index; the rows' text is not copied."""
    hashes = np.concatenate([part["hash"] for part in parts])
    order = np.argsort(hashes, kind="stable")
    images, rows = [len(part["hash"]) for part in parts], [len(part["lengths"]) for part in parts]
    numbers = np.concatenate([part["numbers"] for part in parts])
    shard_of_row = np.repeat(np.arange(len(parts), dtype=np.int32), rows)
    return {
        "hash": hashes[order], "shard": np.repeat(np.arange(len(parts), dtype=np.int32), images)[order],
        **{name: np.concatenate([part[name] for part in parts])[order] for name in ("offset", "size", "crc")},
        "data": [part["data"] for part in parts], "ends": _sums([part["lengths"] for part in parts]),
        "places": np.stack([shard_of_row, numbers], 1), "rows_of": _sums([np.array(rows, np.int64)]),
        "starts": _sums([part["copies"] for part in parts])}


def _sums(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """int64[N+1]: the sum before each, and of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]).astype(np.int64)


def _check_unique(hashes: NDArray[np.uint64], shard: NDArray[np.int32], shards: Sequence[Shard]) -> None:
    twice = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twice):
        first, second = (shards[int(shard[twice[0] + step])].name for step in (0, 1))
        raise DataError(f"{len(twice)} images have a name that another has too, the first in {first} and {second}; "
                        "names must differ.")
