"""How a batch leaves a loader worker: pictures in shared memory that is used again, small tensors by value.

torch makes a new shared file for each tensor of a batch. Making, mapping and passing them costs more than the pictures'
copy. Here a worker has a few `Slots`, and `collate` stacks pictures there. One byte of a slot says whether its reader
still uses it.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from lavis_lite.processors.pixels import Pixels

MOST_SLOTS = 12
"""per worker; if all are in use, pictures travel torch's way"""
SMALL = 2**16
"""bytes of a tensor that goes through the pipe with the strings"""
WorkerId = tuple[int, int]
"""number of the loader, process id of the worker"""

_NUMBERS = count()
JOIN: ContextVar[Callable[[list[Tensor]], Tensor]] = ContextVar("join", default=torch.stack)
"""stacks the pictures of the batch that is made; in a worker into a free slot, so that `Slots.put` copies nothing"""
_KNOWN: dict[tuple[WorkerId, int], Tensor] = {}
"""the reader's side of the slots, which come along with their first batch"""


class Sender:
    """A collate function for workers. Its batches travel as this module describes.

    Args:
        collate: samples -> batch.
        loader: the slots are forgotten when it is gone.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any], loader: object) -> None:
        self.collate, self.number = collate, next(_NUMBERS)
        self._slots: Slots | None = None
        weakref.finalize(loader, _forget, self.number)

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch, on its way."""
        if self._slots is None:
            self._slots = Slots((self.number, os.getpid()))
        token = JOIN.set(self._slots.join)
        try:
            batch = self.collate(samples)
        finally:
            JOIN.reset(token)
        return Parcel(batch, self._slots) if isinstance(batch, dict) else batch


class Parcel:
    """A batch on its way; unpickled, it is the batch again."""

    def __init__(self, batch: dict[str, Any], slots: Slots) -> None:
        self.items = {key: _packed(value, slots) for key, value in batch.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.items,)


class Slots:
    """A worker's shared memory. The last byte of a slot says whether it is in use."""

    def __init__(self, worker: WorkerId) -> None:
        self.worker, self.memory = worker, list[Tensor]()
        self._filled: dict[int, int] = {}
        """address of a slot that `room` gave -> its number"""
        self._sent = set[int]()

    def room(self, shape: Sequence[int]) -> Tensor | None:
        """A free slot as uint8[shape], from now on in use; None if all are. It is lost if its picture is never put."""
        number = self._take(math.prod(shape))
        if number is None:
            return None
        memory = self.memory[number]
        self._filled[memory.data_ptr()] = number
        return memory[:math.prod(shape)].view(*shape)

    def join(self, pictures: list[Tensor]) -> Tensor:
        """`torch.stack` into a free slot, if there is one."""
        return torch.stack(pictures, out=self.room([len(pictures), *pictures[0].shape]))

    def put(self, picture: Pixels) -> Placed | None:
        """The picture in a slot: its own, if `room` gave it, else a free one; None if all slots are in use."""
        raw = picture.raw
        number = self._filled.pop(raw.data_ptr(), None)
        if number is None:
            number = self._take(raw.numel())
            if number is None:
                return None
            _shaped(self.memory[number], raw.shape, raw.stride()).copy_(raw)
        memory = None if number in self._sent else self.memory[number]
        self._sent.add(number)
        return Placed(self.worker, number, memory, tuple(raw.shape), raw.stride(), picture.scale.numpy(),
                      picture.shift.numpy())

    def _take(self, size: int) -> int | None:
        """Number of a free slot of at least `size` bytes, from now on in use."""
        free = (number for number, memory in enumerate(self.memory) if len(memory) > size and not memory[-1])
        number = next(free, len(self.memory))
        if number == len(self.memory):
            if number == MOST_SLOTS:
                return None
            self.memory.append(torch.empty(size + 1, dtype=torch.uint8).share_memory_())
        self.memory[number][-1] = 1
        return number


@dataclass
class Placed:
    """Where a picture lies; see `Slots`."""

    worker: WorkerId
    number: int
    memory: Tensor | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    scale: Any
    shift: Any

    def opened(self) -> Tensor:
        """The picture; the slot is free again after the last reference to it."""
        key = (self.worker, self.number)
        memory = _KNOWN[key] if self.memory is None else _KNOWN.setdefault(key, self.memory)
        values = _shaped(memory, self.shape, self.stride)
        picture = Pixels(values, torch.from_numpy(self.scale), torch.from_numpy(self.shift))
        picture.lease = Lease(memory)
        return picture


@dataclass
class Small:
    """A tensor by value."""

    array: Any

    def opened(self) -> Tensor:
        """The tensor."""
        return torch.from_numpy(self.array)


class Lease:
    """The use of a slot; it ends with the last reference."""

    def __init__(self, memory: Tensor) -> None:
        self.in_use = memory.numpy()[-1:]

    def __del__(self) -> None:
        self.in_use[0] = 0


def _shaped(memory: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    return memory.as_strided(tuple(shape), tuple(stride))


def _fills_its_memory(values: Tensor) -> bool:
    return values.is_contiguous() or values.movedim(-3, -1).is_contiguous()


def _packed(value: Any, slots: Slots) -> Any:
    if isinstance(value, Pixels) and value.is_bytes and _fills_its_memory(value.raw):
        placed = slots.put(value)
        return value if placed is None else placed
    if type(value) is Tensor and value.device.type == "cpu" and value.dtype != torch.bfloat16 and value.is_contiguous():
        return Small(value.detach().numpy()) if value.numel() * value.element_size() <= SMALL else value
    return value


def _opened(items: dict[str, Any]) -> dict[str, Any]:
    return {key: value.opened() if isinstance(value, Placed | Small) else value for key, value in items.items()}


def _forget(number: int) -> None:
    for key in [key for key in _KNOWN if key[0][0] == number]:
        del _KNOWN[key]
