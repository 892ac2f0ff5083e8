"""Batches from loader workers: equal to those of the process itself, in memory that is used again only when free."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.datasets.loading import transport
from lavis_lite.datasets.loading.loader import Loader, collate
from lavis_lite.datasets.loading.transport import MOST_SLOTS, SMALL, Parcel, Sender, Slots, _opened
from lavis_lite.processors.pixels import Pixels

SCALE, SHIFT = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), -1.0)


class Rows:
    """Samples of which everything is a function of the number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": pixels(index), "number": index, "long": torch.full((SMALL,), float(index)),
                "half": torch.full((2,), index, dtype=torch.bfloat16), "text_input": f"row {index}"}


def pixels(index: int, channels_last: bool = True) -> Pixels:
    made = (torch.arange(3 * 8 * 6).reshape(8, 6, 3) * (index + 1) % 256).to(torch.uint8).permute(2, 0, 1)
    return Pixels(made if channels_last else made.contiguous(), SCALE, SHIFT)


def sent(batch: dict[str, Any], slots: Slots) -> dict[str, Any]:
    """A batch as its reader gets it, here in the same process."""
    opened, items = Parcel(batch, slots).__reduce__()
    assert opened is _opened
    return _opened(*items)


def test_batches_of_workers_equal_those_of_the_process() -> None:
    loaders = [Loader(Rows(40), workers, "fork" if workers else None, batch_size=2, collate_fn=collate)
               for workers in (0, 1)]
    for own, far in zip(*loaders, strict=True):
        assert own.keys() == far.keys() and own["text_input"] == far["text_input"]
        for key in ("image", "number", "long", "half"):
            assert torch.equal(own[key] + 0, far[key] + 0) and own[key].dtype == far[key].dtype, key


def test_slots_are_forgotten_with_their_loader() -> None:
    loader = Loader(Rows(8), 1, "fork", batch_size=2, collate_fn=collate)
    gc.collect()  # loaders of other tests
    before = len(transport._KNOWN)
    held = [batch["image"] for batch in loader]
    assert 0 < len(transport._KNOWN) - before <= 4
    del loader
    gc.collect()
    assert len(transport._KNOWN) == before
    for number, picture in enumerate(held):
        assert torch.equal(picture[0] + 0, pixels(2 * number) + 0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_slot_is_written_again_only_when_its_picture_is_gone(channels_last: bool) -> None:
    slots, expected = Slots((-1, int(channels_last))), pixels(0) + 0
    first = sent({"image": pixels(0, channels_last)}, slots)
    second = sent({"image": pixels(1, channels_last)}, slots)
    assert len(slots.memory) == 2 and torch.equal(first["image"].clone(), expected)
    del first, second
    third = sent({"image": pixels(2, channels_last)}, slots)
    also = third["image"].staged(torch.device("cpu"))
    del third
    fourth = sent({"image": pixels(3, channels_last)}, slots)
    assert len(slots.memory) == 2 and torch.equal(also + 0, pixels(2) + 0)
    assert torch.equal(fourth["image"] + 0, pixels(3) + 0)


def test_batches_that_somebody_keeps_travel_the_usual_way_once_all_slots_are_taken() -> None:
    slots = Slots((-2, 0))
    kept: Sequence[Tensor] = [sent({"image": pixels(index)}, slots)["image"] for index in range(MOST_SLOTS + 3)]
    assert len(slots.memory) == MOST_SLOTS
    assert all(torch.equal(one + 0, pixels(index) + 0) for index, one in enumerate(kept))


def test_a_larger_picture_gets_a_slot_of_its_own() -> None:
    slots = Slots((-3, 0))
    sent({"image": pixels(0)}, slots)
    large = Pixels(torch.ones(3, 30, 30, dtype=torch.uint8), SCALE, SHIFT)
    assert torch.equal(sent({"image": large}, slots)["image"] + 0, large + 0) and len(slots.memory) == 2


def test_a_worker_stacks_pictures_in_the_slot_they_travel_in() -> None:
    stored = torch.stack

    def counted(tensors: Any, *rest: Any, out: Tensor | None = None) -> Tensor:
        filled.append(None if out is None else out.data_ptr())
        return stored(tensors, *rest, out=out)

    sender, filled = Sender(collate, collate), list[int | None]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "stack", counted)
        parcel = sender([{"image": pixels(3)}, {"image": pixels(4)}])
    assert sender._slots is not None and filled == [sender._slots.memory[0].data_ptr()]
    batch = _opened(parcel.items)
    assert torch.equal(batch["image"] + 0, torch.stack([pixels(3), pixels(4)]) + 0) and len(sender._slots.memory) == 1


@pytest.mark.parametrize("shape", ["twice", "nested"])
def test_a_picture_that_is_sent_twice_or_inside_another_value_is_not_written_over(shape: str) -> None:
    def twice(samples: Sequence[Any]) -> dict[str, Any]:
        image = collate(samples)["image"]
        return {"image": image, "again": image} if shape == "twice" else {"inside": [image]}

    sender = Sender(twice, twice)
    batches = [_opened(sender([{"image": pixels(number)}]).items) for number in (0, 1)]
    if shape == "twice":
        for batch in batches:
            del batch["image"]  # its slot is free again, the other's is not
    batches.append(_opened(sender([{"image": pixels(2)}]).items))
    for number, batch in enumerate(batches):
        image = batch["again"] if shape == "twice" else batch["inside"][0]
        assert torch.equal(image[0] + 0, pixels(number) + 0)
