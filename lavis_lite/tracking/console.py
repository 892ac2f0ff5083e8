"""Progress for people: a bar on a terminal, plain lines elsewhere (files, schedulers, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from lavis_lite.tracking.sink import Record, Sink

PLAIN_SECONDS = 30.0
"""between two lines about an evaluation without a terminal"""
SIDE_FORMAT = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left |{bar}|"


class Console(Sink):
    """Shows steps done, losses, learning rate, images per second and the time left; an evaluation below them.

    Args:
        stream: where to write; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self._bar: tqdm | None = None
        self._side: tqdm | _Lines | None = None
        self._start, self._total, self._began = 0, 0, time.monotonic()

    def open(self, start_step: int, total_steps: int) -> None:
        """Begin the bar at `start_step`."""
        self._start, self._total, self._began = start_step, total_steps, time.monotonic()
        if self.is_terminal:
            self._bar = tqdm(total=total_steps, initial=start_step, file=self.stream, unit="step", dynamic_ncols=True,
                             smoothing=0.05)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def begin(self, title: str, total: int, done: int = 0, unit: str = "samples") -> None:
        """A bar below the steps' own, or a line now and then."""
        self.end()
        if not self.is_terminal:
            self._side = _Lines(title, total, done, unit, self.log)
            return
        self._side = tqdm(total=total, initial=done, desc=title, unit=f" {unit}", file=self.stream, dynamic_ncols=True,
                          leave=False, position=0 if self._bar is None else 1, bar_format=SIDE_FORMAT)

    def proceed(self, done: int) -> None:
        """Move that bar."""
        if self._side is not None:
            self._side.update(done - self._side.n)

    def end(self) -> None:
        """Take that bar away."""
        if self._side is not None:
            self._side.close()
            self._side = None

    def record(self, record: Record) -> None:
        """Losses go beside the bar, or onto a line of their own; the runner logs metrics, in the task's words."""
        if "split" in record:
            return
        text = record_line(record)
        if "event" in record or "hook" in record:
            self.log(f"step {record['step']}  {text}")
        elif self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.log(f"step {record['step']}/{self._total}  {text}  eta {self._eta(record['step'])}")

    def _eta(self, step: int) -> str:
        done = max(step - self._start, 1)
        return tqdm.format_interval((time.monotonic() - self._began) / done * max(self._total - step, 0))

    def log(self, text: str) -> None:
        """Print without tearing the bar."""
        if self.is_terminal and (self._bar or self._side) is not None:
            tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """End the bars."""
        self.end()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """What a bar would show, as a plain line every half minute."""

    def __init__(self, title: str, total: int, done: int, unit: str, log: Callable[[str], None]) -> None:
        self.title, self.total, self.n, self.unit, self.log = title, total, done, unit, log
        self._before, self._began = done, time.monotonic()
        self._reported = self._began

    def update(self, count: int) -> None:
        """So many more units are done."""
        self.n += count
        now = time.monotonic()
        if now - self._reported < PLAIN_SECONDS:
            return
        self._reported = now
        rate = (self.n - self._before) / (now - self._began)
        left = tqdm.format_interval((self.total - self.n) / rate) if rate > 0 else "?"
        self.log(f"{self.title}: {self.n:,}/{self.total:,} {self.unit}, {rate:.1f} {self.unit}/s, {left} left")

    def close(self) -> None:
        """Nothing is left on the screen."""


SHOWN = 3
"""items of a list that a line of the console shows"""


def record_line(record: Record) -> str:
    """A record in one line: `loss 5.21 (itc 2.07  itm 0.66  lm 2.48)  lr 1.0e-04  830 images/s  data wait 2%`."""
    if "hook" in record:
        values = (f"{key} {value:.4g}" for key, value in record.items() if key not in ("step", "hook"))
        return f"{record['hook']}: {'  '.join(values)}"
    if "event" in record:
        return "  ".join(_short(value) for key, value in record.items() if key not in ("step", "losses"))
    parts = [f"{key.removeprefix('loss_')} {value:.4f}" for key, value in record.items() if key.startswith("loss_")]
    text = f"loss {record['loss']:.4f}" + (f" ({'  '.join(parts)})" if parts else "")
    text = f"{text}  lr {record['lr']:.2e}  {record['images_per_second']:.1f} images/s"
    if "data_wait" in record:
        text += f"  data wait {record['data_wait']:.0%}"
    return text + (f"  peak {record['peak_memory_gib']:.1f} GiB" if "peak_memory_gib" in record else "")


def _short(value: Any) -> str:
    """A value, or the first few of a list and how many there are."""
    if not isinstance(value, list):
        return str(value)
    more = f" and {len(value) - SHOWN} more, see log.jsonl" if len(value) > SHOWN else ""
    return ", ".join(str(item) for item in value[:SHOWN]) + more
