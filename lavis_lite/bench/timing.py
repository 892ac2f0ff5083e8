"""Sides of a comparison take turns on one machine; medians of paired ratios."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lavis_lite.products import plain

OWN = ("ours", "fp32")
"""sides that are this package; fp32: without autocast"""


class Seconds(NamedTuple):
    """Of one turn: by the clock, and processor time of all threads and of ended child processes."""

    wall: float
    cpu: float


def one(batch: Any) -> float:
    """The scale of a turn that does the whole work."""
    return 1.0


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        turn: does the work on a batch.
        scale: factor of a turn's seconds, if a batch is a part of the whole that is compared.
    """

    turn: Callable[[Any], object]
    scale: Callable[[Any], float] = one

    def seconds(self, batch: Any, device: torch.device) -> Seconds:
        """Do a turn."""
        spent, scale = timed(lambda: self.turn(batch), device), self.scale(batch)
        return Seconds(spent.wall * scale, spent.cpu * scale)


@dataclass
class Case:
    """What is compared.

    Attributes:
        name: of the row.
        sides: name -> builds a side; "ours" is first.
        batch: number of the round -> what all sides work on.
        images, tokens: in a turn, of real text; 0: does not apply.
        padding: share of padding if a batch were as wide as its longest text; None: does not apply.
        counted: whether FLOPs and host reads of a turn are of interest.
        check: raises if the sides disagree; called before anything is timed.
    """

    name: str
    sides: Mapping[str, Callable[[], Side]]
    batch: Callable[[int], Any]
    images: int = 0
    tokens: float = 0
    padding: float | None = None
    counted: bool = True
    check: Callable[[Mapping[str, Side]], None] = field(default=lambda sides: None)

    def build(self, name: str) -> Side:
        """A side; other code multiplies as torch does, also where it shares the layers of this package's model."""
        if name in OWN:
            return self.sides[name]()
        with plain():
            side = self.sides[name]()
        return replace(side, turn=plain()(side.turn))


def timed(work: Callable[[], object], device: torch.device) -> Seconds:
    """Seconds of some work, kernels included."""
    synchronise(device)
    wall, cpu = time.perf_counter(), processor_time()
    work()
    synchronise(device)
    return Seconds(time.perf_counter() - wall, processor_time() - cpu)


def processor_time() -> float:
    """Seconds of this process and of its child processes that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(sides: Mapping[str, Side], batches: Iterable[Any], warmup: int,
               device: torch.device) -> dict[str, list[Seconds]]:
    """Seconds of every side by batch. The sides take turns; every second round runs in reverse order."""
    found: dict[str, list[Seconds]] = {name: [] for name in sides}
    for number, batch in enumerate(batches):
        for name in list(sides)[::-1 if number % 2 else 1]:
            seconds = sides[name].seconds(batch, device)
            if number >= warmup:
                found[name].append(seconds)
    return found


class WaitTimer:
    """The batches of a case by number, and the seconds that each took to come.

    Args:
        batch: as `Case.batch`.
        count: number of batches.

    Attributes:
        seconds: by the clock, one for each batch so far.
        last: the newest batch.
    """

    def __init__(self, batch: Callable[[int], Any], count: int) -> None:
        self.batch, self.count = batch, count
        self.seconds: list[float] = []
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        for number in range(self.count):
            start = time.perf_counter()
            self.last = self.batch(number)
            self.seconds.append(time.perf_counter() - start)
            yield self.last


def ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of turns that ran next to each other."""
    paired = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(paired), min(paired), max(paired)


def machine(device: torch.device) -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
