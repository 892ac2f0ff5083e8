"""The index of shards that somebody else wrote: found out by walking through their headers once.

Layouts: <key>.<picture> with <key>.json, <key>.txt or both, as img2dataset and webdataset write them; or this
package's own, whose index is then the same again. Every tar is read, none is unpacked.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lavis_lite import atomic, sealed
from lavis_lite.datasets.annotations.rows import Field, RowFaults, checked_row, file_name, texts
from lavis_lite.datasets.annotations.tables import Row
from lavis_lite.datasets.files.mapped import Mapped
from lavis_lite.datasets.shards.index import (
    EXPLODED,
    INDEX,
    PARTS,
    Part,
    Shard,
    ShardIndex,
    part_facts,
    part_path,
    write_index,
)
from lavis_lite.datasets.shards.writer import SKIPPED, Say, joined
from lavis_lite.errors import DataError

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif"}
_TEXTS = {"json", "txt"}
_MOST_TEXT = 16_000_000
"""bytes of a sample's JSON or text that are read"""
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass
class Sample:
    """What a tar holds under one key."""

    key: str
    image: tuple[str, int, int, int] | None = None
    """member, offset, size, CRC-32"""
    texts: dict[str, bytes] = field(default_factory=dict)


def index_folder(folder: Path, keep: Sequence[str] = (), skip_bad: bool = False, workers: int = 1,
                 say: Say = print) -> ShardIndex:
    """Write the index of all tars in a folder; what was found out of a tar is kept if this is broken off.

    Args:
        folder: of the tars.
        keep: further fields of the samples' JSON that rows shall have, besides the caption.
        skip_bad: leave samples out that have no image or no text, and what comes behind a damaged place.
        workers: processes that read.
        say: is told of the progress.

    Raises:
        DataError: no tars, two images of one name; or, without `skip_bad`, up to 20 faults, all in one message.
    """
    names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        raise DataError(f"{folder}: there are no shards (*.tar) in it.")
    (folder / PARTS).mkdir(exist_ok=True)
    missing = [name for name in names if not _scanned(folder, name, keep)]
    scan = partial(scan_shard, folder, keep=tuple(keep))
    if workers <= 1:
        for done, name in enumerate(missing, 1):
            scan(name)
            say(f"{name} read ({done} of {len(missing)})")
    else:
        with ProcessPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(scan, missing), 1):
                say(f"{missing[done - 1]} read ({done} of {len(missing)})")
    _judge(folder, names, skip_bad, say)
    index = write_index(folder, names, folder.name)
    for name in names:
        part_path(folder, name).unlink()
    return index


def _scanned(folder: Path, name: str, keep: Sequence[str]) -> bool:
    facts = part_facts(folder, name) or {}
    return facts.get("keep") == json.dumps(list(keep)) and facts.get("stamp") == _stamp(folder / name)


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def scan_shard(folder: Path, name: str, keep: tuple[str, ...]) -> None:
    """Find out what one tar holds and write it down beside the index."""
    path, faults = folder / name, RowFaults()
    samples = [sample for sample in _samples(path, faults) if _usable(path, sample, faults)]
    images, rows = [], []
    fields = [Field("image", file_name), Field(EXPLODED, texts, required=False)]
    for sample in samples:
        found = _rows(path, sample, keep, fields, faults)
        if found:
            assert sample.image is not None
            images.append((found[0]["image"], *sample.image[1:]))
            rows += [(len(images), row) for row in found]
    kinds = {"image": file_name.__name__}
    if rows and all(EXPLODED in row for _, row in rows):
        kinds[EXPLODED] = texts.__name__
    shard = Shard(name, path.stat().st_size, len(images), sealed.file_sha256(path))
    Part(shard, images, rows, kinds).save(folder, keep=json.dumps(list(keep)), stamp=_stamp(path),
                                          faults=json.dumps(faults.shown), count=str(faults.count))


def _samples(path: Path, faults: RowFaults) -> list[Sample]:
    """Members with the same key, one after another, are one sample."""
    samples: list[Sample] = []
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:
                found = _KEY.fullmatch(member.name)
                kind = found.group(2).lower() if found else ""
                if not member.isreg() or found is None or kind not in PICTURES | _TEXTS:
                    continue
                if not samples or samples[-1].key != found.group(1):
                    samples.append(Sample(found.group(1)))
                _take(samples[-1], kind, member, file)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset >= path.stat().st_size:
                faults.add(f"{path}:{len(samples)}", f"cut short or damaged at byte {tar.offset}, after sample "
                                                     f"{samples[-1].key if samples else 'none'}")
    except (tarfile.TarError, OSError, ValueError) as fault:
        faults.add(f"{path}:{len(samples)}", f"cut short or damaged after sample "
                                             f"{samples[-1].key if samples else 'none'} ({fault})")
        samples = samples[:-1]  # the last one may be half there
    return samples


def _take(sample: Sample, kind: str, member: tarfile.TarInfo, file: Any) -> None:
    file.seek(member.offset_data)
    if kind in PICTURES:
        left, crc = member.size, 0
        while left:
            chunk = file.read(min(left, 1 << 20))
            if not chunk:
                raise ValueError(f"{member.name} is cut short")
            left, crc = left - len(chunk), zlib.crc32(chunk, crc)
        if sample.image is None:
            sample.image = (member.name, member.offset_data, member.size, crc)
    elif member.size <= _MOST_TEXT:
        sample.texts[kind] = file.read(member.size)


def _usable(path: Path, sample: Sample, faults: RowFaults) -> bool:
    lacking = "image" if sample.image is None else "" if sample.texts else "text (.json or .txt)"
    if lacking:
        faults.add(f"{path}:{sample.key}", f"has no {lacking}")
    return not lacking


def _rows(path: Path, sample: Sample, keep: tuple[str, ...], fields: Sequence[Field], faults: RowFaults) -> list[Row]:
    """The rows of a sample; none where its JSON or text is at fault."""
    assert sample.image is not None
    place, before = f"{path}:{sample.key}", faults.count
    try:
        content = json.loads(sample.texts["json"]) if "json" in sample.texts else {}
        text = sample.texts["txt"].decode("utf-8").strip() if "txt" in sample.texts else None
        if not isinstance(content, dict):
            raise ValueError("its JSON is no object")
    except (ValueError, RecursionError) as fault:
        faults.add(place, f"its text cannot be read ({fault})")
        return []
    if isinstance(content.get("image"), str):  # written by `data shard`: the row as it was
        inner = content.get("rows")
        raw = inner if isinstance(inner, list) and inner else [content]
        kept = [row | checked_row(place, row, fields, faults) for row in raw if isinstance(row, dict)]
    else:
        caption = content.get(EXPLODED)
        row = {"image": f"{path.stem}/{sample.image[0]}", EXPLODED: text if caption in (None, "", []) else caption}
        kept = [checked_row(place, row, [fields[0], Field(EXPLODED, texts)], faults)
                | {key: content[key] for key in keep if key in content}]
    return joined(kept) if faults.count == before else []


def _judge(folder: Path, names: Sequence[str], skip_bad: bool, say: Say) -> None:
    """Stop where something is wrong, or write down what is left out."""
    facts = [Mapped(part_path(folder, name)).facts for name in names]
    shown = [fault for one in facts for fault in json.loads(one["faults"])]
    count = sum(int(one["count"]) for one in facts)
    if not count:
        return
    if not skip_bad:
        raise DataError(f"{count} fault{'s' if count > 1 else ''} in the shards of {folder}:\n" + "\n".join(shown[:20])
                        + "\nMend them, or add --skip-bad to leave these samples out.")
    atomic.write_text(folder / SKIPPED, "".join(json.dumps({"fault": fault.strip()}) + "\n" for fault in shown))
    say(f"{count} faults, what they concern is left out: {folder / SKIPPED}")


def needs_index(folder: Path, again: bool) -> bool:
    """Whether there is none, or a new one is asked for; the old one is removed then."""
    if again:
        (folder / INDEX).unlink(missing_ok=True)
    return not (folder / INDEX).exists()
