"""A data set of loose files -> shards: tars of some thousand samples, written by webdataset, and their index.

The images' bytes go in as they are; a sample's JSON is its row (rows of the same image make one sample). Each tar
appears whole or not at all. Finished tars are kept if the writer is killed, and the next writer continues after them.
The same data set gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lavis_lite.datasets.annotations.tables import ELEMENT, Row, RowTable
from lavis_lite.datasets.files.locate import file_hash
from lavis_lite.datasets.files.mapped import Mapped
from lavis_lite.datasets.media.images import SUFFIXES, BadSample, ImageFolder
from lavis_lite.datasets.shards.index import (
    EXPLODED,
    INDEX,
    PARTS,
    Part,
    Shard,
    ShardIndex,
    name_hash,
    part_facts,
    part_path,
    write_index,
)
from lavis_lite.errors import DataError
from lavis_lite.io import atomic
from lavis_lite.process.children import worker_pool

SKIPPED = "skipped.jsonl"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Which sample goes into which shard.

    Attributes:
        table: the rows. folder: the images.
        rows: int64[N], the rows in the order of their samples; ends: int64[M+1], the end of each sample's rows.
        per_shard: samples of a shard. out: folder of the shards.
        skip_bad: leave out images that cannot be read; otherwise writing stops.
        fingerprint: hash of the rows and of per_shard.
    """

    table: RowTable
    folder: ImageFolder
    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    per_shard: int
    out: Path
    skip_bad: bool
    fingerprint: str

    @property
    def names(self) -> list[str]:
        """Of all shards."""
        return [f"{number:06d}.tar" for number in range(-(-(len(self.ends) - 1) // self.per_shard))]

    def samples(self, shard: int) -> Iterator[tuple[int, list[Row]]]:
        """(number of the sample, its rows) of one shard."""
        for sample in range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.ends) - 1)):
            yield sample, [self.table[int(row)] for row in self.rows[self.ends[sample]:self.ends[sample + 1]]]


def make_plan(table: RowTable, folder: ImageFolder, out: Path, per_shard: int, skip_bad: bool = False) -> Plan:
    """Group the rows by image, images in the order in which they first appear.

    The fingerprint knows the size of every image's file, so that pictures that have changed are other data.
    """
    digest, hashes = hashlib.sha256(f"{per_shard}".encode()), np.empty(len(table), np.uint64)
    for number in range(len(table)):
        row = table[number]
        digest.update(json.dumps(row).encode())
        hashes[number] = name_hash(row["image"])
    _, first, image = np.unique(hashes, return_index=True, return_inverse=True)
    for number in np.sort(first).tolist():
        digest.update(str(folder.file_size(table[number]["image"])).encode())
    rows = np.argsort(first[image], kind="stable")
    starts = np.flatnonzero(np.diff(hashes[rows], prepend=~hashes[rows[:1]]))
    return Plan(table, folder, rows, np.append(starts, len(table)), per_shard, out, skip_bad, digest.hexdigest())


def write_shards(plan: Plan, space: str, workers: int = 1, log: Log = print) -> ShardIndex:
    """Write the missing shards of a plan, then their index.

    Args:
        plan: see `make_plan`.
        space: keeps the images' ids apart from other data sets'.
        workers: processes that write; the result does not depend on it.
        log: receives lines of progress.

    Raises:
        DataError: the folder holds other shards.
        BadSample: an image cannot be read, unless the plan skips those.
    """
    (plan.out / PARTS).mkdir(parents=True, exist_ok=True)
    with FileLock(str(plan.out / ".lock")):
        _check_folder(plan)
        if (plan.out / INDEX).exists():
            log(f"all {len(plan.names)} shards are there already")
            return ShardIndex(plan.out)
        missing = [number for number, name in enumerate(plan.names) if not _finished(plan.out, name)]
        if len(missing) < len(plan.names):
            log(f"{len(plan.names) - len(missing)} of {len(plan.names)} shards are there already")
        for done, number in enumerate(_each(plan, missing, workers), 1):
            log(f"{plan.names[number]} written ({done} of {len(missing)})")
        skipped = [record for name in plan.names
                   for record in json.loads(Mapped(part_path(plan.out, name)).facts["skipped"])]
        if skipped:
            atomic.write_text(plan.out / SKIPPED, "".join(json.dumps(record) + "\n" for record in skipped))
            log(f"{len(skipped)} images could not be read and were left out: {plan.out / SKIPPED}")
        index = write_index(plan.out, plan.names, space)
        for name in plan.names:
            part_path(plan.out, name).unlink()
        return index


def _check_folder(plan: Plan) -> None:
    note = plan.out / PARTS / "plan.json"
    for folder in (plan.out, plan.out / PARTS):  # the folder is locked: no other process writes half a shard
        atomic.remove_strays(folder)
    present = json.loads(note.read_text()) if note.exists() else None
    if present is None and (any(plan.out.glob("*.tar")) or (plan.out / INDEX).exists()):
        raise DataError(f"{plan.out} holds shards that were not written by this command; choose another --out.")
    if present not in (None, plan.fingerprint):
        raise DataError(f"{plan.out} holds shards of other data or of another --samples-per-shard; choose another "
                        "--out, or remove that folder.")
    atomic.write_text(note, json.dumps(plan.fingerprint))


def _finished(out: Path, name: str) -> bool:
    """Whether a shard and its part of the index are there."""
    facts = part_facts(out, name)
    return facts is not None and (out / name).exists() and (
        int(json.loads(facts["shard"])["bytes"]) == (out / name).stat().st_size)


class _Worker:
    """A process that writes shards; it receives the plan once."""

    plan: Plan

    @classmethod
    def start(cls, plan: Plan) -> None:
        cls.plan = plan

    @classmethod
    def write(cls, number: int) -> int:
        write_shard(cls.plan, number)
        return number


def _each(plan: Plan, numbers: Sequence[int], workers: int) -> Iterator[int]:
    """Write shards; yields each one's number when it is there."""
    if workers <= 1 or len(numbers) <= 1:
        for number in numbers:
            write_shard(plan, number)
            yield number
        return
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    try:
        with worker_pool(min(workers, len(numbers)), "writing shards", how, _Worker.start, (plan,)) as pool:
            yield from pool.map(_Worker.write, numbers)
    finally:  # of processes that were killed
        for folder in (plan.out, plan.out / PARTS):
            atomic.remove_strays(folder)


def write_shard(plan: Plan, number: int) -> None:
    """Write one shard and its part of the index.

    Raises:
        BadSample: an image cannot be read, unless the plan skips those.
    """
    from webdataset import TarWriter  # imported here: only writing needs it

    name, members = plan.names[number], _Members()
    with atomic.replaced(plan.out / name) as temporary:
        # no owner and no time, so that the bytes are the same whoever writes them
        with temporary.open("wb") as file, TarWriter(
                file, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for sample, rows in plan.samples(number):
                members.add(tar, sample, rows, plan)
        shard = Shard(name, temporary.stat().st_size, len(members.images), atomic.file_sha256(temporary),
                      file_hash(temporary))
    kinds = {field: "texts" if field == EXPLODED and kind == ELEMENT else kind
             for field, kind in plan.table.kinds.items()}
    Part(shard, members.images, members.rows, kinds).save(plan.out, skipped=json.dumps(members.skipped))


class _Members:
    """What has been written into a tar."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int, int, int]] = []
        self.rows: list[tuple[int, Row]] = []
        self.skipped: list[dict[str, str]] = []

    def add(self, tar: Any, sample: int, rows: list[Row], plan: Plan) -> None:
        """One sample: its image, then its JSON."""
        name = rows[0]["image"]
        try:
            content = plan.folder.read(name)
        except BadSample as error:
            if not plan.skip_bad:
                raise
            self.skipped.append({"image": name, "file": error.path, "reason": error.reason})
            return
        key, rows = f"{sample:09d}", joined(rows)
        tar.write({"__key__": key, suffix_of(name, content): content})
        offset = tar.tarstream.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        row = rows[0] if len(rows) == 1 else {"image": name, "rows": rows}
        tar.write({"__key__": key, "json": json.dumps(row).encode()})
        self.images.append((name, offset, len(content), zlib.crc32(content)))
        self.rows += [(len(self.images), row) for row in rows]


def joined(rows: list[Row]) -> list[Row]:
    """Rows of one image; if they differ in their caption only, one row with the list of captions."""
    lists = [{**row, EXPLODED: [row[EXPLODED]]} if isinstance(row.get(EXPLODED), str) else row for row in rows]
    rest = [{key: value for key, value in row.items() if key != EXPLODED} for row in lists]
    if len(lists) > 1 and all(EXPLODED in row for row in lists) and all(other == rest[0] for other in rest):
        return [{**lists[0], EXPLODED: [caption for row in lists for caption in row[EXPLODED]]}]
    return lists


def suffix_of(name: str, content: bytes) -> str:
    """The suffix by which readers of webdataset know a picture: its name's, or else its format's."""
    suffix = name.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if f".{suffix}" in SUFFIXES:
        return suffix
    with contextlib.suppress(UnidentifiedImageError, OSError), Image.open(io.BytesIO(content)) as image:
        return {"JPEG": "jpg", "TIFF": "tif"}.get(str(image.format), str(image.format).lower())
    return "bin"

