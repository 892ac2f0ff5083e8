"""R3: one flipped bit in anything that is read back from a disk is found, or changes nothing.

Checkpoints, annotation caches, shard indexes, kept features, journals and shards. `--long` flips 1,000 bits.
"""

from __future__ import annotations

import json
import random
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.datasets.annotations import rows as annotations
from lavis_lite.datasets.features.cache import FeatureFolder
from lavis_lite.datasets.features.writer import FeatureJob, write_features
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.datasets.shards.cache import LocalShards
from lavis_lite.datasets.shards.dataset import ShardImages
from lavis_lite.datasets.shards.index import ARRAYS, INDEX, ShardIndex
from lavis_lite.datasets.shards.writer import make_plan, write_shards
from lavis_lite.errors import LavisLiteError
from lavis_lite.evaluation.resume import EvalCheckpoint
from lavis_lite.runners import checkpointing
from tests.helpers.toy import ToyModel

FEW, MANY = 240, 1000
FIELDS = [annotations.Field("image", annotations.file_name), annotations.Field("caption", annotations.texts)]


@dataclass
class Subject:
    """Something that is kept on a disk.

    Attributes:
        files: those that are damaged, one at a time.
        read: everything that is read of it; raises, or notes what it could not use.
        covered: whether every bit of the files is proved; else some may change nothing (padding of a tar).
        notes: what was said by the last `read`.
    """

    files: list[Path]
    read: Callable[[], Any]
    covered: bool = True
    notes: list[str] = field(default_factory=list)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images and a file with their captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.frombytes("RGB", (12, 9), random.Random(number).randbytes(324)).save(folder / f"{number}.png")
    rows = [{"image": f"{number % 6}.png", "caption": [f"picture {number}", "another"]} for number in range(12)]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    return folder


def checkpoint(tmp_path: Path) -> Subject:
    store = checkpointing.CheckpointStore(tmp_path / "run")
    store.prepare()
    state = {"step": 1, "best": None, "optimizer": {"out.weight": {"exp_avg": torch.arange(3.0)}}}
    store.save(1, ToyModel(seed=1), state, "run: {}\n")

    def read() -> Any:
        read_tensors(store.path(1))
        model = ToyModel(seed=2)
        found = checkpointing.load(store.path(1), model)
        return {name: value.tolist() for name, value in model.trainable_state().items()}, str(found)

    return Subject(sorted(store.path(1).iterdir()), read)


def annotation_cache(tmp_path: Path) -> Subject:
    subject = Subject([], list)

    def read() -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = annotations.read_table([tmp_path / "captions.json"], FIELDS)
        subject.notes = [str(warning.message) for warning in caught]
        return [table[index] for index in range(len(table))], [table.location(index) for index in range(len(table))]

    subject.read = read
    read()
    subject.files = list((tmp_path / "cache" / "tables").glob("*.safetensors"))
    return subject


def shards_of(tmp_path: Path) -> Path:
    table = annotations.read_table([tmp_path / "captions.json"], FIELDS)
    out = tmp_path / "shards"
    out.mkdir()
    write_shards(make_plan(table, ImageFolder(tmp_path / "images"), out, 4), "toy", log=lambda text: None)
    return out


def read_shards(folder: Path, notes: list[str]) -> Any:
    index = ShardIndex(folder)
    images = ShardImages(index, LocalShards(folder, index.shards))
    table = index.exploded(index.table([shard.name for shard in index.shards]))
    found: dict[str, Any] = {"rows": [table[row] for row in range(len(table))], "sizes": table.file_sizes()}
    for row in range(len(table)):
        name = table[row]["image"]
        try:
            found[name] = zlib.crc32(images.load(name).tobytes())
        except BadSample as bad:
            notes.append(str(bad))
    return found, [(shard.name, shard.samples) for shard in index.shards], index.space


def shard_index(tmp_path: Path) -> Subject:
    folder = shards_of(tmp_path)
    return Subject([folder / INDEX, folder / ARRAYS], lambda: read_shards(folder, []))


def shards(tmp_path: Path) -> Subject:
    folder = shards_of(tmp_path)
    subject = Subject(sorted(folder.glob("*.tar")), list, covered=False)

    def read() -> Any:
        subject.notes = []
        return read_shards(folder, subject.notes)

    subject.read = read
    return subject


def features(tmp_path: Path) -> Subject:
    folder = ImageFolder(tmp_path / "images")
    job = FeatureJob([f"{number}.png" for number in range(6)], folder, to_tensor, encode,
                     {"encoder": {"name": "toy"}, "processor": {"name": "toy"}}, tmp_path / "kept", "fp32", 4, 2)
    write_features(job, log=lambda text: None)
    subject = Subject(sorted((tmp_path / "kept").iterdir()), list, covered=False)  # hashes in features-*: the writer's

    def read() -> Any:
        subject.notes, kept, found = [], FeatureFolder(tmp_path / "kept"), {}
        for name in job.images:
            try:
                found[name] = kept.load(name).tolist()
            except BadSample as bad:
                subject.notes.append(str(bad))
        return found, kept.manifest["encoder"], kept.manifest["processor"]

    subject.read = read
    return subject


def to_tensor(image: Any, rng: Any = None) -> torch.Tensor:
    return torch.tensor(list(image.tobytes()), dtype=torch.float32).reshape(3, 9, 12)


def encode(image: torch.Tensor) -> torch.Tensor:
    return image.reshape(len(image), 6, 54)[:, :, :7] / 3


def journal(tmp_path: Path) -> Subject:
    parts = {"data set": "toy", "split": "val", "step": 0, "weights": "w"}
    book = EvalCheckpoint(tmp_path / "run", "val_toy_step0", parts, True, 0)
    rows = [[{"id": 2 * batch, "answer": "yes"}, {"id": 2 * batch + 1, "answer": "no"}] for batch in range(4)]
    for batch in range(4):
        book.append({"batch": batch, "rows": rows[batch], "samples": 2, "bad": []})
    book.append({"key": "part", "value": [0.5, None]})
    book.close()
    subject = Subject([book.path], list)

    def read() -> Any:
        """What is not found again is done again: only what is found must be right."""
        batches, finished, told = EvalCheckpoint(tmp_path / "run", "val_toy_step0", parts, True, 0).load()
        for aside in book.folder.glob("*.other"):
            aside.unlink()
        lost = [str(batch) for batch in range(4) if batch not in batches]
        subject.notes = [*told, *lost, *([] if "part" in finished else ["part"])]
        assert all(entry["rows"] == rows[batch] for batch, entry in batches.items())
        assert finished.get("part", [0.5, None]) == [0.5, None]
        return "right"

    subject.read = read
    return subject


KINDS = [checkpoint, annotation_cache, shard_index, features, journal, shards]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_r3_a_flipped_bit_is_never_another_value(
        kind: Callable[[Path], Subject], tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "CACHED_FROM", 50)
    subject = kind(tmp_path)
    wanted, rng = subject.read(), random.Random(kind.__name__)
    assert subject.notes == []
    found = 0
    trials = -(-(MANY if request.config.getoption("--long") else FEW) // len(KINDS))
    for trial in range(trials):
        path = subject.files[trial % len(subject.files)]
        whole = path.read_bytes()
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        found += outcome(subject, wanted, f"bit {bit} of byte {place} of {path}")
        path.write_bytes(whole)
    assert found == trials if subject.covered else 0 < found
    assert subject.read() == wanted


def outcome(subject: Subject, wanted: Any, what: str) -> bool:
    """Whether the damage was noticed; it must be, or change nothing."""
    try:
        value = subject.read()
    except LavisLiteError as error:
        assert str(subject.files[0].parent) in str(error), f"{what}: {error}"
        return True
    if not subject.notes:
        assert value == wanted, f"{what}: another value, and not a word"
        return False
    if value != wanted:  # samples that are left out with a line; no other value
        assert isinstance(value, tuple) and value[1:] == wanted[1:]
        assert value[0].items() <= wanted[0].items(), what
    return True
