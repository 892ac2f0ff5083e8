"""Progress for people: a bar on a terminal, plain lines elsewhere (files, schedulers, CI)."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from lavis_lite.tracking.sink import Record, Sink


class Console(Sink):
    """Shows steps done, losses, learning rate, images per second and the time left.

    Args:
        stream: where to write; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self._bar: tqdm | None = None
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

    def record(self, record: Record) -> None:
        """Losses go beside the bar, or onto a line of their own; the runner says metrics, in the task's words."""
        if "split" in record:
            return
        text = record_line(record)
        if "event" in record:
            self.say(f"step {record['step']}  {text}")
        elif self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {record['step']}/{self._total}  {text}  eta {self._eta(record['step'])}")

    def _eta(self, step: int) -> str:
        done = max(step - self._start, 1)
        return tqdm.format_interval((time.monotonic() - self._began) / done * max(self._total - step, 0))

    def say(self, text: str) -> None:
        """Print without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def record_line(record: Record) -> str:
    """A record in one line: `loss 5.21 (itc 2.07  itm 0.66  lm 2.48)  lr 1.0e-04  830 images/s`."""
    if "event" in record:
        return "  ".join(str(value) for key, value in record.items() if key != "step")
    parts = [f"{key.removeprefix('loss_')} {value:.4f}" for key, value in record.items() if key.startswith("loss_")]
    text = f"loss {record['loss']:.4f}" + (f" ({'  '.join(parts)})" if parts else "")
    return f"{text}  lr {record['lr']:.2e}  {record['images_per_second']:.1f} images/s"
