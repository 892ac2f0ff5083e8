"""Loaders: the same batches bit for bit with any number of workers, and from any step on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.base import BaseDataset
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.loading.loader import eval_loader, train_loader
from lavis_lite.datasets.loading.sampler import GlobalSampler, negative_uniforms
from lavis_lite.errors import DataError, WorkerError


def config(**more: Any) -> RunConfig:
    settings: dict[str, Any] = {"batch_size_train": 2, "batch_size_eval": 3, "num_workers": 0, "seed": 7}
    return RunConfig(device="cpu", **{**settings, **more})


def same(left: Iterable[dict], right: Iterable[dict]) -> bool:
    left, right = list(left), list(right)
    return len(left) == len(right) and all(_equal(a, b) for a, b in zip(left, right, strict=True))


def _equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        for key, value in left.items())


@pytest.fixture
def train_set(coco_section) -> BaseDataset:
    return ImageCaptionBuilder("tiny", coco_section).build("train", training=True)


def batches(dataset: Any, first: int, end: int, rank: int = 0, world_size: int = 1, accum: int = 1,
            **more: Any) -> list:
    cfg = config(accum_grad_iters=accum, **more)
    order = GlobalSampler([len(dataset)], cfg.seed, cfg.batch_size_train * world_size * accum)
    return list(train_loader([dataset], order, cfg, rank, world_size, first, end))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(train_set, workers):
    alone = batches(train_set, 0, 12)  # more than one epoch of eight steps
    assert same(alone, batches(train_set, 0, 12, num_workers=workers))
    assert len({tuple(batch["instance_id"]) for batch in alone}) > 8


def test_restarting_at_any_step_changes_nothing(train_set):
    whole = batches(train_set, 0, 10)
    for step in range(11):
        assert same(whole[step:], batches(train_set, step, 10))
    assert same(whole[5:], batches(train_set, 5, 10, num_workers=2))


def test_augmentation_differs_between_epochs(train_set):
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(train_set, 0, 16):
        for name, image in zip(batch["instance_id"], batch["image"], strict=True):
            seen.setdefault(name, []).append(image)
    assert all(len(views) == 2 and not torch.equal(*views) for views in seen.values())


def test_ranks_and_accumulation_share_samples_pixels_and_negatives(train_set):
    alone = batches(train_set, 0, 3, batch_size_train=8)
    for world_size, accum in ((2, 1), (1, 2), (2, 2)):
        size = 8 // world_size // accum
        parts = [batches(train_set, 0, 3, rank, world_size, accum, batch_size_train=size) for rank in range(world_size)]
        for step, batch in enumerate(alone):
            mine = [parts[rank][step * accum + micro] for micro in range(accum) for rank in range(world_size)]
            assert torch.equal(torch.cat([part["image"] for part in mine]), batch["image"])
            assert torch.equal(torch.cat([part["uniform"] for part in mine]), batch["uniform"])


def test_uniform_is_keyed_by_the_global_position(train_set):
    batch = batches(train_set, 3, 4)[0]
    assert batch["uniform"].tolist() == [negative_uniforms(7, position).tolist() for position in (6, 7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_torchs_generator_alone(train_set, workers):
    before = torch.get_rng_state()
    batches(train_set, 0, 2, num_workers=workers)
    list(eval_loader(train_set, config(num_workers=workers)))
    assert torch.equal(before, torch.get_rng_state())


class Plain:
    """A map-style data set of somebody else's."""

    def __init__(self, size: int, **more: Any) -> None:
        self.size, self.more = size, more

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, **self.more}


class Keyed(Plain):
    @property
    def sample_keys(self) -> tuple[str, ...]:
        return ("index", *self.more)


def test_concat_keeps_the_keys_that_all_sets_have_in_every_batch():
    # a batch that happens to hold one set only must have the same keys as the other ranks' batches
    sets = [Keyed(4, a=1, both=2), Keyed(40, b=1, both=2)]
    order = GlobalSampler([4, 40], 0, 2)
    loader = train_loader(sets, order, config(), 0, 1, 0, order.steps_per_epoch)
    assert {frozenset(batch) for batch in loader} == {frozenset({"index", "both", "uniform"})}


def test_ratio_keeps_all_keys_of_the_chosen_set():
    sets = [Keyed(20, a=1), Keyed(40, b=1)]
    loader = train_loader(sets, GlobalSampler([20, 40], 0, 2, [1, 1]), config(), 0, 1, 0, 30)
    assert {frozenset(batch) for batch in loader} == {frozenset({"index", "a", "uniform"}),
                                                     frozenset({"index", "b", "uniform"})}


def test_foreign_data_sets_are_indexed(train_set):
    order = GlobalSampler([6], 0, 2)
    rows = [row for batch in train_loader([Plain(6)], order, config(), 0, 1, 0, 3) for row in batch["index"].tolist()]
    assert sorted(rows) == list(range(6))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_covers_all_rows_once_over_ranks(coco_section, workers):
    dataset = ImageCaptionBuilder("tiny", coco_section).build("val", training=False)
    parts = [list(eval_loader(dataset, config(num_workers=workers), rank, 2)) for rank in range(2)]
    assert [batch["index"].tolist() for part in parts for batch in part] == [[0, 1, 2], [3]]
    assert parts[0][0]["uniform"].shape == (3, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_with_one_plain_message(train_set, coco_folder, workers):
    (coco_folder / "images" / "3.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError) as caught:
        batches(train_set, 0, 8, num_workers=workers)
    message = str(caught.value)
    assert "captions_train.json:" in message and "3.png is not an image of a known format" in message
    assert "Traceback" not in message and "run.on_bad_sample=skip" in message


class Crashing(Plain):
    """Its worker leaves a block in shared memory, as if it died between making a block and removing its name."""

    def __getitem__(self, index: int) -> Any:
        Path(f"/dev/shm/torch_{os.getpid()}_1_1").touch()
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no /dev/shm")
def test_what_a_dead_worker_left_in_shared_memory_is_removed():
    with pytest.raises(WorkerError) as raised:
        next(iter(eval_loader(Crashing(1), RunConfig(num_workers=1, worker_start_method="fork"))))
    pid = int(re.findall(r"process id (\d+)", str(raised.value))[0])
    assert list(Path("/dev/shm").glob(f"torch_{pid}_*")) == []
