"""Writes and filters captions in parts, by several processes, and packs them into shards.

- `out/plan.json`: settings and images of the parts
- `out/parts/00000.jsonl`: rows {"image", "caption": the kept ones, best first, "scores", "written": which are new}
- `out/parts/00000.bad.jsonl`: images of the part that could not be read
- `out/shards/`: tars with an index, for a data set with `captions: random`

A part is written atomically and depends only on its own images, so the number of processes and kills do not change the
result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from lavis_lite.capfilt.captioner import Captioner, seed_of
from lavis_lite.capfilt.ranker import Ranker
from lavis_lite.datasets.annotations.tables import Row, RowTable
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.shards.index import ShardIndex
from lavis_lite.datasets.shards.writer import Plan, make_plan, write_shards
from lavis_lite.errors import DataError
from lavis_lite.io import atomic

PARTS, SHARDS, PLAN = "parts", "shards", "plan.json"
KINDS = {"image": "file_name", "caption": "texts"}
"""keys and types of the rows of the shards"""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """Images, models and settings of a CapFilt run.

    Attributes:
        table: rows with image and caption (one text or several). folder: the images. space: of their ids, to keep them
            apart from other data sets.
        captioner, ranker: the models. keep: captions that are kept of each image. seed: of the sampling.
        out: the output folder. per_part: images per part. batch: images per pass. per_shard: images per tar.
        skip_bad: leave out unreadable images, up to the share max_bad; else the first one is an error.
    """

    table: RowTable
    folder: ImageFolder
    space: str
    captioner: Captioner
    ranker: Ranker
    out: Path
    keep: int = 2
    seed: int = 42
    per_part: int = 1000
    batch: int = 16
    per_shard: int = 10_000
    skip_bad: bool = False
    max_bad: float = 0.001

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.out / PARTS / f"{number:05d}.jsonl"

    def bad(self, number: int) -> Path:
        """The file with the unreadable images of a part."""
        return self.part(number).with_suffix(".bad.jsonl")


@dataclass
class _Picture:
    """An image with its name, pixels and captions."""

    name: str
    pixels: Image.Image
    original: list[str]
    written: list[str] = field(default_factory=list)

    def candidates(self) -> list[str]:
        """Different captions, the original ones first."""
        by_words: dict[str, str] = {}
        for text in [*self.original, *self.written]:
            words = " ".join(text.split())
            if words:
                by_words.setdefault(words.casefold(), words)
        return list(by_words.values())


def run_job(job: Job, rank: int = 0, world_size: int = 1, log: Log = print) -> ShardIndex | None:
    """Write this process' share of the parts, and pack the shards once all parts are written.

    Args:
        job: images, models and settings.
        rank, world_size: this process takes every `world_size`-th part.
        log: receives lines of progress.

    Returns:
        The shards' index; None if other processes have not finished.

    Raises:
        DataError: the folder holds results of other settings; an image cannot be read (without skip_bad), or too many
            cannot.
    """
    plan = make_plan(job.table, job.folder, job.out, job.per_part)
    _check_folder(job, plan)
    parts = len(plan.names)
    for number in range(rank, parts, world_size):
        if not job.part(number).exists():
            _write_part(job, plan, number)
            log(f"part {number + 1} of {parts} written: {job.part(number)}")
    if not all(job.part(number).exists() for number in range(parts)):
        return None
    return _pack(job, parts, log)


def _check_folder(job: Job, plan: Plan) -> None:
    facts = [plan.fingerprint, job.captioner.name, job.ranker.name, job.keep, job.seed]
    wanted = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    (job.out / PARTS).mkdir(parents=True, exist_ok=True)
    note = job.out / PLAN
    with FileLock(str(job.out / ".lock")):
        if note.exists() and _made_of(note) != wanted:
            raise DataError(f"{job.out} holds captions of other images, models or settings; choose another --out, or "
                            "remove that folder.")
        atomic.write_text(note, json.dumps({"made_of": wanted, "captioner": job.captioner.name,
                                            "ranker": job.ranker.name, "keep": job.keep, "seed": job.seed}))


def _made_of(note: Path) -> str:
    """What a folder's results were made of; "" if its note is damaged."""
    try:
        return str(json.loads(note.read_bytes())["made_of"])
    except (ValueError, KeyError, TypeError):
        return ""


def _write_part(job: Job, plan: Plan, number: int) -> None:
    bad: list[dict[str, str]] = []
    rows = [row for batch in _batches(job, plan, number, bad) for row in _filtered(job, batch)]
    job.bad(number).unlink(missing_ok=True)
    if bad:
        atomic.write_text(job.bad(number), _lines(bad))
    atomic.write_text(job.part(number), _lines(rows))


def _lines(records: Sequence[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _batches(job: Job, plan: Plan, number: int, bad: list[dict[str, str]]) -> Iterator[list[_Picture]]:
    """The readable images of a part in batches; the others are added to `bad`."""
    waiting: list[_Picture] = []
    for _, rows in plan.samples(number):
        name = rows[0]["image"]
        try:
            waiting.append(_Picture(name, job.folder.load(name), list(_captions(rows))))
        except BadSample as error:
            if not job.skip_bad:
                raise
            bad.append({"image": name, "file": error.path, "reason": error.reason})
        if len(waiting) == job.batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _captions(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        caption = row.get("caption", [])
        yield from [caption] if isinstance(caption, str) else caption


def _filtered(job: Job, pictures: list[_Picture]) -> Iterator[Row]:
    """The rows of some images: captions written, ranked, the best kept."""
    seeds = [seed_of(job.seed, picture.name) for picture in pictures]
    pixels = [picture.pixels for picture in pictures]
    for picture, written in zip(pictures, job.captioner.write(pixels, seeds), strict=True):
        picture.written = written
    described = [(picture, candidates) for picture in pictures if (candidates := picture.candidates())]
    if not described:
        return
    ranked = job.ranker.scores([picture.pixels for picture, _ in described], [texts for _, texts in described])
    for (picture, candidates), scores in zip(described, ranked, strict=True):
        yield best(picture.name, candidates, scores, picture.original, job.keep)


def best(name: str, candidates: Sequence[str], scores: Sequence[float], original: Sequence[str], keep: int) -> Row:
    """The row of an image: its `keep` best captions, the best first; of equal ones the earlier."""
    order = sorted(range(len(candidates)), key=lambda index: -scores[index])[:keep]
    own = {" ".join(text.split()).casefold() for text in original}
    return {"image": name, "caption": [candidates[index] for index in order],
            "scores": [round(scores[index], 4) for index in order],
            "written": [candidates[index].casefold() not in own for index in order]}


def _pack(job: Job, parts: int, log: Log) -> ShardIndex:
    """Pack all parts into shards.

    Raises:
        DataError: the share of unreadable images is above `max_bad`, or no image is readable.
    """
    bad = sum(_count(job.bad(number)) for number in range(parts))
    files = [job.part(number) for number in range(parts)]
    table = RowTable(((file, line, row) for file, path in enumerate(files) for line, row in _rows(path)), files, KINDS)
    if bad > job.max_bad * (bad + len(table)) or not len(table):
        raise DataError(f"{bad} of {bad + len(table)} images could not be used, more than --max-bad-fraction="
                        f"{job.max_bad:g} allows; {job.out / PARTS}/*.bad.jsonl list them with the reasons.")
    if bad:
        log(f"{bad} images could not be read and were left out: {job.out / PARTS}/*.bad.jsonl")
    out = job.out / SHARDS
    out.mkdir(exist_ok=True)
    return write_shards(make_plan(table, job.folder, out, job.per_shard), job.space, log=log)


def _count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield number, json.loads(line)
