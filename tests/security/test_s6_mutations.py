"""S6: whatever is written into a YAML file, an option, a manifest or an annotation file is used or refused in words.

By default a few hundred mutations; `--long` makes 10,000. No raw traceback, none that takes long.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.config.compose import compose, to_yaml
from lavis_lite.datasets.annotations.rows import Field, file_name, identifier, read_table, texts
from lavis_lite.datasets.features.cache import FeatureFolder
from lavis_lite.datasets.features.writer import FeatureJob, write_features
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.shards.index import INDEX, ShardIndex
from lavis_lite.errors import LavisLiteError
from lavis_lite.evaluation import resume
from lavis_lite.io import atomic
from lavis_lite.preflight import check, missing
from lavis_lite.runners import checkpointing
from tests.helpers.toy import ToyModel
from tests.reliability.test_r3_flipped_bits import encode, shards_of, to_tensor
from tests.security.mutations import json_values, mutated_text, mutated_tree, mutated_yaml, options, write

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = [REPOSITORY / "projects" / name for name in (
    "blip2/stage1.yaml", "blip2/mini_finetune_caption.yaml", "blip2/eval/mini_vqa_opt.yaml",
    "instructblip/mini_t5.yaml", "blip2/stage1_vitg.yaml", "instructblip/vicuna7b.yaml", "blip2/stage1_custom.yaml")]
LIMIT_SECONDS = 30.0
"""of processor time for one mutation; generous, because a hang has no end"""
FEW, MANY = 80, 2500
"""mutations of each of the four kinds"""


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return MANY if request.config.getoption("--long") else FEW


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def in_words(work: Callable[[], Any], what: str) -> bool:
    """Whether the work was refused; anything but a refusal in words and a result fails."""
    begun = time.process_time()
    try:
        work()
    except LavisLiteError as error:
        assert str(error).strip(), what
        return True
    except Exception as error:
        raise AssertionError(f"a raw {type(error).__name__} from {what}") from error
    finally:
        assert time.process_time() - begun < LIMIT_SECONDS, f"too long: {what}"
    return False


def gate(path: Path, given: list[str]) -> None:
    """What train.py does before it builds anything."""
    composition = compose(path, given)
    faults = check(composition)
    to_yaml(composition, with_layers=True).encode()
    assert faults or missing(composition.config) is not None


@pytest.mark.timeout(3600)
def test_s6_yaml(tmp_path: Path, count: int) -> None:
    rng = random.Random("yaml")
    sources = {path: path.read_text().replace("base: ", f"base: {path.parent}/") for path in RUNS}
    refused = 0
    for number in range(count):
        source = rng.choice(RUNS)
        path = write(tmp_path / "run.yaml", mutated_yaml(sources[source], rng))
        what = f"mutation {number} of {source.name}: {path.read_bytes()!r}"
        refused += in_words(lambda path=path: gate(path, []), what)
    assert 0 < refused < count


@pytest.mark.timeout(3600)
def test_s6_options(count: int) -> None:
    rng = random.Random("options")
    keys = {}
    for path in RUNS[:4]:
        composition = compose(path)
        keys[path] = [*composition.provenance, *(f"run.{key}" for key in vars(composition.config.run)), "imports"]
    refused = 0
    for number in range(count):
        path = rng.choice(RUNS[:4])
        given = options(keys[path], rng)
        refused += in_words(lambda path=path, given=given: gate(path, given), f"options {number}: {given!r}")
    assert 0 < refused < count


def checkpoint(tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    store = checkpointing.CheckpointStore(tmp_path / "out" / "run")
    store.prepare()
    store.save(1, ToyModel(), {"step": 1, "best": None, "optimizer": {"w": torch.ones(2)}}, "run: {}\n")

    def read() -> None:
        checkpointing.newest_good(tmp_path / "out", log=lambda text: None)  # never stopped by one that is foreign
        checkpointing.load(store.path(1), ToyModel())

    return store.path(1) / "manifest.json", read


def shard_index(tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (12, 9), (number, 0, 0)).save(images / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": ["a", "b"]} for number in range(3)]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    folder = shards_of(tmp_path)

    def read() -> None:
        index = ShardIndex(folder)
        table = index.exploded(index.table([str(shard.name) for shard in index.shards]))
        assert [table[row] for row in range(len(table))] and index.find("0.png") is not None

    return folder / INDEX, read


def feature_manifest(tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    job = FeatureJob([f"{number}.png" for number in range(3)], ImageFolder(tmp_path / "images"), to_tensor, encode,
                     {"encoder": {"name": "toy"}, "processor": {"name": "toy"}}, tmp_path / "kept", "fp32", 4, 2)
    write_features(job, log=lambda text: None)

    def read() -> None:
        kept = FeatureFolder(tmp_path / "kept")
        kept.check_encoder({"name": "toy"})
        kept.load("1.png")

    return tmp_path / "kept" / "manifest.json", read


@pytest.mark.timeout(3600)
def test_s6_manifests(tmp_path: Path, count: int) -> None:
    rng = random.Random("manifests")
    subjects = [subject(tmp_path) for subject in (checkpoint, shard_index, feature_manifest)]
    whole = {path: path.read_text() for path, _ in subjects}
    refused = 0
    for number in range(count):
        path, read = rng.choice(subjects)
        if rng.random() < 0.3:
            write(path, mutated_text(whole[path], rng))
        else:  # foreign, but with the right seal
            tree = json_values(mutated_tree(json.loads(whole[path]), rng))
            write(path, atomic.seal(tree) if isinstance(tree, dict) else json.dumps(tree))
        refused += in_words(read, f"mutation {number} of {path.name}: {path.read_bytes()!r}")
        path.write_text(whole[path])
    assert count // 2 < refused <= count
    for _, read in subjects:
        read()


def test_s6_journals_of_another_shape_are_no_journals(tmp_path: Path) -> None:
    rng = random.Random("journals")
    parts = {"data set": "toy", "split": "val", "step": 0}
    book = resume.EvalCheckpoint(tmp_path, "val_toy_step0", parts, True, 0)
    entry = {"batch": 1, "rows": [{"id": 1}], "samples": 1, "bad": []}
    for _ in range(60):
        head = mutated_tree(book.header, rng) if rng.random() < 0.5 else book.header
        lines = json_values([head, mutated_tree(entry, rng)])
        book.folder.mkdir(parents=True, exist_ok=True)
        book.path.write_bytes(b"".join(resume.encode_line(line) for line in lines if isinstance(line, dict)))
        finished, _, _ = book.load()
        assert all(isinstance(number, int) for number in finished)
        assert all(isinstance(one["rows"], list) for one in finished.values())


ANNOTATIONS = {
    "a.json": json.dumps([{"image": f"{number}.jpg", "caption": ["one", "two"], "image_id": number}
                          for number in range(4)], indent=1),
    "b.jsonl": "".join(json.dumps({"image": f"{number}.jpg", "caption": "red"}) + "\n" for number in range(4)),
    "c.csv": "image,caption,image_id\n" + "".join(f'{number}.jpg,"one, two",{number}\n' for number in range(4)),
    "d.tsv": "image\tcaption\n" + "".join(f"{number}.jpg\tone\n" for number in range(4)),
    "e.json": json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}],
                          "annotations": [{"id": 1, "image_id": 1, "caption": "red"}]}),
}
FIELDS = [Field("image", file_name), Field("caption", texts), Field("image_id", identifier, required=False)]


def annotation(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(list(ANNOTATIONS))
    text = ANNOTATIONS[name]
    if name.endswith(".json") and rng.random() < 0.5:
        return name, json.dumps(json_values(mutated_tree(json.loads(text), rng)))
    return name, mutated_text(text, rng)


@pytest.mark.timeout(3600)
def test_s6_annotations(tmp_path: Path, count: int) -> None:
    rng = random.Random("annotations")
    refused = 0
    for number in range(count):
        name, text = annotation(rng)
        path = write(tmp_path / name, text)
        what = f"mutation {number} of {name}: {path.read_bytes()!r}"
        refused += in_words(lambda path=path: list(rows_of(path)), what)
    assert 0 < refused < count


def rows_of(path: Path) -> Iterator[Any]:
    table = read_table([path], FIELDS)
    return (table[row] for row in range(len(table)))
