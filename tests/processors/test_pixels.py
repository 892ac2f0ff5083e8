"""Pictures that stay bytes: equal to floats for whoever looks, and no floats for whoever only passes them on."""

from __future__ import annotations

import copy
import io
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lavis_lite.processors.image import Blip2ImageTrain, BlipImageEval
from lavis_lite.processors.pixels import Pixels, keep_pixels, stack
from lavis_lite.processors.video import AlproVideoEval


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def pair(seed: int = 0, processor: Any = None) -> tuple[Tensor, Pixels]:
    """The floats of a picture, and the same as bytes."""
    made = processor or Blip2ImageTrain(24)
    plain = made(picture(seed), random.Random(seed))
    with keep_pixels():
        held = made(picture(seed), random.Random(seed))
    assert type(plain) is Tensor and isinstance(held, Pixels) and held.is_bytes and held.raw.dtype == torch.uint8
    return plain, held


@pytest.mark.parametrize("look", [
    lambda one: one.to("cpu"), lambda one: one + 0, lambda one: one[:], lambda one: one.float(),
    lambda one: torch.from_numpy(one.numpy()), lambda one: torch.from_numpy(np.array(one)),
    lambda one: torch.zeros(3, 24, 24).copy_(one), lambda one: torch.cat([one]), lambda one: torch.tensor(one.tolist()),
    lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, lambda one: torch.where(one == one, one, 0.0),
    lambda one: one.clone(), lambda one: default_collate([one])[0], lambda one: torch.stack(list(one)),
])
def test_whoever_looks_sees_the_floats_bit_for_bit(look: Any) -> None:
    plain, held = pair()
    seen = look(held)
    assert type(seen) is Tensor and torch.equal(seen, plain) and torch.equal(held + 0, plain)


def test_its_shape_is_asked_without_making_floats() -> None:
    plain, held = pair()
    assert (held.shape, held.dtype, held.device, held.ndim, len(held), held.numel(), held.size(1), held.dim()) == (
        plain.shape, torch.float32, plain.device, 3, 3, plain.numel(), 24, 3)
    assert isinstance(held, Tensor) and not held.requires_grad and held.is_floating_point() and held.is_bytes


def test_changes_in_place_last() -> None:
    plain, held = pair()
    held.mul_(2)
    held[0] = 0
    plain.mul_(2)[0] = 0
    assert torch.equal(held + 0, plain) and torch.equal(torch.stack([held, held])[1], plain)
    assert stack([held, held]) is None


def test_stacks_stay_bytes() -> None:
    pairs = [pair(seed) for seed in range(3)]
    batch = torch.stack([torch.as_tensor(held) for _, held in pairs])
    assert isinstance(batch, Pixels) and batch.is_bytes
    moved = batch.staged(torch.device("cpu"))
    assert isinstance(moved, Pixels) and moved.is_bytes
    assert torch.equal(moved.to("cpu"), torch.stack([plain for plain, _ in pairs]))


def test_moved_to_another_device_it_is_normalised_there() -> None:
    _, held = pair()
    for moved in (held.to("meta"), held.to(torch.device("meta"), non_blocking=True), held.to(device="meta")):
        assert type(moved) is Tensor and moved.device.type == "meta" and moved.dtype == torch.float32
    assert torch.zeros(1).to(held).dtype == torch.float32
    held = pair()[1]
    assert held.to("meta") is not held and held.is_bytes and held.to("meta", torch.float16).dtype == torch.float16
    assert held.to(torch.float64).dtype == torch.float64 and not held.is_bytes


def test_pictures_under_two_normalisations_become_floats() -> None:
    one, other = pair(0), pair(1, BlipImageEval(24, mean=[0.5] * 3, std=[0.5] * 3))
    batch = torch.stack([one[1], other[1]])
    assert type(batch) is Tensor and torch.equal(batch, torch.stack([one[0], other[0]]))


def test_clips_are_normalised_by_channel() -> None:
    clip, processor = np.stack([picture(seed) for seed in range(2)]), AlproVideoEval(24, n_frms=2)
    with keep_pixels():
        held = processor(clip)
    batch = torch.stack([held, held])
    assert isinstance(batch, Pixels) and batch.shape == (2, 3, 2, 24, 24)
    assert torch.equal(batch.to("cpu")[1], processor(clip))


def test_another_process_gets_bytes_and_a_file_floats() -> None:
    plain, held = pair()
    kept, sent = io.BytesIO(), io.BytesIO()
    torch.save(held, kept)
    kept.seek(0)
    assert torch.equal(torch.load(kept, weights_only=True), plain)
    ForkingPickler(sent).dump(pair()[1])
    arrived = pickle.loads(sent.getvalue())
    assert isinstance(arrived, Pixels) and arrived.is_bytes and torch.equal(arrived + 0, plain)


def test_a_processor_with_its_own_normalisation_gives_what_it_makes() -> None:
    class Halves(BlipImageEval):
        def normalise(self, pixels: Tensor) -> Tensor:
            return pixels / 510

    with keep_pixels():
        made = Halves(24)(picture())
    assert type(made) is Tensor and float(made.max()) <= 0.5


def test_torch_s_own_collate_works_in_a_worker() -> None:
    """There it fills shared memory itself, which pictures as bytes do not have."""
    plain, held = pair()
    batches = list(DataLoader([{"image": held, "id": 1}, {"image": held, "id": 2}], 2, num_workers=1))  # type: ignore[arg-type]
    assert torch.equal(batches[0]["image"] + 0, torch.stack([plain, plain])) and batches[0]["id"].tolist() == [1, 2]
