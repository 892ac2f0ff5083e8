"""The files that rows name: are they there, may they be read, do some of them decode, and how large are they.

Whether a file is there is looked up in listings of the folders (one call per folder instead of one per file); decoding
is slow, so only a sample of the files is decoded.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lavis_lite.datasets.doctor.report import SplitReport, Summary
from lavis_lite.datasets.doctor.rows import Names
from lavis_lite.datasets.files.alike import LINK, why_absent
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.datasets.shards.dataset import ShardImages


def check_media(dataset: ImageTable, names: Names, report: SplitReport, sample: int) -> None:
    """Add missing and unreadable files, and the sizes of those that were opened, to the report.

    Args:
        dataset: with `folder` (an ImageFolder, the images of shards, or a VideoFolder) and `place`.
        names: what the rows name.
        report: of the split.
        sample: how many files are decoded.
    """
    missing, outside = report.problem("missing files"), report.problem("files outside of their folder")
    bad = set()
    for name, reason in refused(dataset.folder, names.first_row):
        bad.add(name)
        outside.add(f"{_place(dataset, names, name)} {reason}")
    for name in absent(dataset.folder, [name for name in names.first_row if name not in bad]):
        bad.add(name)
        missing.add(f"{_place(dataset, names, name)} {_shown(name)} {_why_absent(dataset.folder, name)}")
    here = Names({name: row for name, row in names.first_row.items() if name not in bad})
    _open_some(dataset, here, report, sample)


def _place(dataset: ImageTable, names: Names, name: str) -> str:
    return f"{dataset.place(names.first_row[name])}: field {dataset.folder.key!r}:"


def _shown(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def refused(folder: ImageFolder, names: Sequence[str] | Any) -> Iterator[tuple[str, str]]:
    """(name, why) of names that lead out of the folder by their spelling; symbolic links show when files are opened."""
    if isinstance(folder, ShardImages):
        return
    for name in names:
        if posixpath.isabs(name) or ".." in name:
            try:
                folder.path(name)
            except BadSample as fault:
                yield name, f"{_shown(name)} {fault.reason}"


def _why_absent(folder: ImageFolder, name: str) -> str:
    why = "" if isinstance(folder, ShardImages) else why_absent(Path(folder.root) / name)
    return why.removeprefix("it ") if why.startswith(LINK) else f"is not in {folder.root}{'; ' if why else ''}{why}"


def absent(folder: ImageFolder, names: Sequence[str]) -> Iterator[str]:
    """Names without a file."""
    if isinstance(folder, ShardImages):
        yield from (name for name in names if folder.index.find(name) is None)
        return
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)
    for parent, members in by_folder.items():
        present = _listing(Path(folder.root) / parent)
        yield from (name for name in members if os.path.basename(name) not in present)


def _listing(folder: Path) -> frozenset[str]:
    """Names in a folder of what is there; none if there is no such folder or it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path))
    except (OSError, ValueError):
        return frozenset()


def _open_some(dataset: ImageTable, names: Names, report: SplitReport, sample: int) -> None:
    broken = report.problem("files that cannot be used")
    sizes: dict[str, list[float]] = defaultdict(list)
    for name in names.spread(sample):
        try:
            width, height, frames = size_of(dataset.folder, name)
        except BadSample as fault:
            broken.add(f"{_place(dataset, names, name)} {_shown(fault.path)} {fault.reason}")
            continue
        report.opened += 1
        sizes["width"].append(width)
        sizes["height"].append(height)
        sizes["aspect"].append(round(width / height, 3))
        if frames is not None:
            sizes["frames"].append(frames)
    report.sizes = {what: summary for what, values in sizes.items() if (summary := Summary.of(values))}


def size_of(folder: ImageFolder, name: str) -> tuple[int, int, int | None]:
    """(width, height, frames of a video) of a file, which is decoded: a video's first frame.

    Raises:
        BadSample: it cannot be used.
    """
    if folder.key != "video":
        image = folder.load(name)
        return image.width, image.height, None
    with folder.load(name) as video:
        (frame,) = video.frames([0])
        return frame.shape[1], frame.shape[0], len(video)
