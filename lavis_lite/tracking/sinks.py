"""Sinks, where the records of a run go: their contract, the console, TensorBoard and Weights & Biases.

Records are plain dicts.

- Training: step, epoch, lr, samples_seen (since the run began), peak_memory_gib (on a GPU). Since the last record:
  loss, loss_* and grad_norm (means without skipped steps), skipped_steps, images_per_second, data_wait (share of time,
  0 to 1).
- Evaluation: step, epoch, split, and the metrics.
- A hook: step, hook (its name), and its numbers.
- A skipped step: step, event, skipped (steps in all), losses (by rank and micro-batch), samples.
- Anything else has an event.
"""

from __future__ import annotations

import html
import netrc
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

from lavis_lite.errors import MissingExtraError, listed

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]


class Sink:
    """One destination of records. Every method may stay as it is."""

    def open(self, start_step: int, total_steps: int) -> None:
        """The run begins or continues after `start_step` optimizer steps; later records of an earlier try are void."""

    def advance(self, step: int) -> None:
        """`step` optimizer steps are done; called after every one."""

    def begin(self, title: str, total: int, done: int = 0, unit: str = "samples") -> None:
        """Work besides the steps begins, an evaluation for example: `total` units, of which `done` were done before."""

    def proceed(self, done: int) -> None:
        """So many of its units are done."""

    def end(self) -> None:
        """It is over, or left."""

    def record(self, record: Record) -> None:
        """A training, evaluation or event record."""

    def text(self, step: int, tag: str, text: str) -> None:
        """A text that belongs to a step, such as sampled captions."""

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """A picture that belongs to a step: float[3,H,W] from 0 to 1, on the CPU."""

    def log(self, text: str) -> None:
        """A line or a table for people."""

    def close(self) -> None:
        """The process is about to leave the run, finished or not."""


def flat_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under the tags that TensorBoard and W&B show: train/loss, val/r_mean ..."""
    group = record.get("split", record.get("hook", "train"))
    return {f"{group}/{key}": float(value) for key, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"}


# --- console ---------------------------------------------------------------------------------------------------------
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
    return listed(value, SHOWN) + (", see log.jsonl" if len(value) > SHOWN else "")


# --- TensorBoard and Weights & Biases --------------------------------------------------------------------------------
class TensorBoard(Sink):
    """Scalars for `tensorboard --logdir <run folder>/tensorboard`; if it is not installed, that is reported once."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder, self.log_once = Path(folder), log
        self._writer: Any = None

    def open(self, start_step: int, total_steps: int) -> None:
        """Start a file of events; events of an earlier try beyond `start_step` are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.log_once("tensorboard is not installed, so no event files are written: `pip install tensorboard`, "
                          "or set run.tensorboard=false.")
            return
        self._writer = SummaryWriter(str(self.folder), purge_step=start_step + 1 if start_step else None)

    def record(self, record: Record) -> None:
        """Write its numbers."""
        if self._writer is not None:
            for tag, value in flat_scalars(record).items():
                self._writer.add_scalar(tag, value, record["step"])

    def text(self, step: int, tag: str, text: str) -> None:
        """Under the tab Text."""
        if self._writer is not None:
            self._writer.add_text(tag, text.replace("\n", "  \n"), step)  # two spaces: a line break of Markdown

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """Under the tab Images."""
        if self._writer is not None:
            self._writer.add_image(tag, image, step)

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WeightsAndBiases(Sink):
    """A W&B run; it stays offline (files under the run folder) unless WANDB_MODE or a login decides otherwise.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("run.wandb is true but wandb is not installed: `pip install 'lavis_lite[track]'`, "
                                    "or set run.wandb=false.") from error
        self._wandb, self._run_dir, self._project = wandb, Path(run_dir), project
        self._run: Any = None

    def open(self, start_step: int, total_steps: int) -> None:
        """Start the run, or continue the one with the id in the run folder."""
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        remembered = self._run_dir / "wandb_id.txt"
        known = remembered.read_text().strip() if remembered.exists() else None
        self._run = self._wandb.init(project=self._project, name=self._run_dir.name, dir=str(self._run_dir), mode=mode,
                                     id=known, resume="allow")
        remembered.write_text(f"{self._run.id}\n")

    def record(self, record: Record) -> None:
        """Send its numbers."""
        if self._run is not None:
            self._run.log(flat_scalars(record), step=record["step"])

    def text(self, step: int, tag: str, text: str) -> None:
        """As preformatted HTML."""
        if self._run is not None:
            self._run.log({tag: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """As an image."""
        if self._run is not None:
            self._run.log({tag: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def logged_in() -> bool:
    """Whether W&B has a key: in the environment or in ~/.netrc. No network is asked."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
