"""Runs a frozen vision encoder over all images of a data set and writes its features; see `cache`."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.features.cache import FORMAT, MANIFEST, NAMES, file_of
from lavis_lite.datasets.files.mapped import Mapped, write_arrays
from lavis_lite.datasets.loading.loader import Loader
from lavis_lite.datasets.media.images import BadSample, Stamp
from lavis_lite.datasets.shards.index import name_hash
from lavis_lite.errors import DataError
from lavis_lite.finite import check_finite
from lavis_lite.io import atomic

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Log = Callable[[str], None]


@dataclass(frozen=True)
class FeatureJob:
    """The features to be written.

    Attributes:
        images: names of the images, each once. folder: where they are read. vis: the processor, not random.
        encode: image float[B,3,H,W] on the CPU -> features float[B,P,Dv].
        facts: what the manifest says of encoder and processor.
        out: the folder. dtype: of the features: bf16 | fp16 | fp32.
        per_file: images of a file. batch_size: images encoded at once. workers: processes that read images.
        skip_bad: leave out images that cannot be used; otherwise the job stops.
        start_method: of the workers: fork | spawn | forkserver; None: the platform's default.
    """

    images: Sequence[str]
    folder: Any
    vis: Callable[[Any], Tensor]
    encode: Callable[[Tensor], Tensor]
    facts: Mapping[str, Any]
    out: Path
    dtype: str = "bf16"
    per_file: int = 1000
    batch_size: int = 64
    workers: int = 0
    skip_bad: bool = False
    start_method: str | None = None

    def names(self, file: int) -> Sequence[str]:
        """The images of one file."""
        return self.images[file * self.per_file:(file + 1) * self.per_file]

    @property
    def files(self) -> int:
        """How many there will be."""
        return -(-len(self.images) // self.per_file)


def image_names(tables: Sequence[RowTable]) -> list[str]:
    """The images of all rows, each once, in their order."""
    return list(dict.fromkeys(table[index]["image"] for table in tables for index in range(len(table))))


def write_features(job: FeatureJob, rank: int = 0, world_size: int = 1, log: Log = print) -> bool:
    """Write this process' share of the files, and the manifest once all are there.

    Files that are there already are kept, so that a job that was stopped goes on. Those with an image that has
    changed are rewritten.

    Args:
        job: the features to be written.
        rank, world_size: this process takes every `world_size`-th file.
        log: receives lines of progress.

    Returns:
        Whether the features are complete.

    Raises:
        DataError: an image cannot be used, unless the job skips those.
        CheckpointError: features that are NaN or infinite.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    for file in range(rank, job.files, world_size):
        if not _is_there(job, file):
            _write_file(job, file)
            log(f"{file_of(file)} written ({file + 1} of {job.files})")
    if not all(_is_there(job, file) for file in range(job.files)):
        return False
    _finish(job)
    return True


def _made_of(job: FeatureJob, file: int) -> str:
    content = json.dumps([job.facts, job.dtype, list(job.names(file))], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _is_there(job: FeatureJob, file: int) -> bool:
    path = job.out / file_of(file)
    if not path.exists():
        return False
    try:
        held = Mapped(path)
        return held.facts.get("made_of") == _made_of(job, file) and all(
            job.folder.still(name, tuple(stamp)) is not None
            for name, stamp in zip(job.names(file), held["stamp"].tolist(), strict=True))
    except DataError:  # damaged: rewritten
        return False


class _Pictures(Dataset[tuple[int, Stamp, Any]]):
    """(index, stamp, processed image), or why it cannot be used in the image's place."""

    def __init__(self, job: FeatureJob, names: Sequence[str]) -> None:
        self.folder, self.vis, self.names = job.folder, job.vis, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, Stamp, Any]:
        name = self.names[index]
        stamp = self.folder.stamp(name)  # first: an image that changes now is then found to have changed
        try:
            return index, stamp, self.folder.view(name, self.vis)
        except BadSample as error:
            return index, stamp, str(error)


def _write_file(job: FeatureJob, file: int) -> None:
    names, kept, rows, stamps = job.names(file), [], [], []
    for items in Loader(_Pictures(job, names), job.workers, job.start_method, batch_size=job.batch_size,
                        collate_fn=list):
        stamps += [stamp for _, stamp, _ in items]
        good = [(index, image) for index, _, image in items if isinstance(image, Tensor)]
        bad = [error for _, _, error in items if isinstance(error, str)]
        if bad and not job.skip_bad:
            raise DataError(f"{bad[0]}. Fix it, or set run.on_bad_sample=skip to leave such images out.")
        if not good:
            continue
        features = check_finite(_encoded(job, [image for _, image in good]),
                                partial(_not_finite, [names[index] for index, _ in good]))
        kept.append(features.view(torch.uint16).numpy() if job.dtype == "bf16" else features.numpy())
        rows += [index for index, _ in good]
    if not kept:
        raise DataError(f"none of the {len(names)} images from {names[0]} on can be used.")
    crc = [zlib.crc32(row.data) for part in kept for row in part]
    write_arrays(job.out / file_of(file),
                 {"features": kept, "crc": np.array(crc, np.uint32), "stamp": np.array(stamps, np.int64),
                  "hash": np.array([name_hash(names[row]) for row in rows], np.uint64),
                  "number": np.array(rows, np.int32)},
                 {"made_of": _made_of(job, file)}, bf16=["features"] if job.dtype == "bf16" else [])


def _not_finite(names: Sequence[str], row: int) -> str:
    return f"cache-features: the vision encoder's features of {names[row]!r} are NaN or infinite."


def _encoded(job: FeatureJob, images: list[Tensor]) -> Tensor:
    """dtype[len(images), P, Dv].

    Every batch has the same size: another shape of a matrix product may round otherwise, and features made in batches
    of the training's size shall be those of training to the last bit.
    """
    filled = images + [images[0]] * (job.batch_size - len(images))
    return job.encode(torch.stack(filled))[:len(images)].to("cpu", DTYPES[job.dtype]).contiguous()


def _finish(job: FeatureJob) -> None:
    """Names and manifest; the manifest comes last."""
    files = [Mapped(job.out / file_of(file)) for file in range(job.files)]
    counts = [len(held["hash"]) for held in files]
    hashes = np.concatenate([held["hash"] for held in files])
    order = np.argsort(hashes, kind="stable")
    rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    write_arrays(job.out / NAMES, {
        "hash": hashes[order], "file": np.repeat(np.arange(len(files), dtype=np.int32), counts)[order],
        "row": rows[order], "crc": np.concatenate([held["crc"] for held in files])[order],
        "stamp": np.concatenate([held["stamp"][held["number"]] for held in files])[order]}, {})
    shape = list(files[0].lazy("features").unchecked().shape[1:])
    content = {"format": FORMAT, **job.facts, "dtype": job.dtype, "shape": shape, "images": len(hashes),
               "files": {held.path.name: {"bytes": held.path.stat().st_size, "digest": held.digest}
                         for held in [*files, Mapped(job.out / NAMES)]}}
    atomic.write_text(job.out / MANIFEST, atomic.seal(content))
