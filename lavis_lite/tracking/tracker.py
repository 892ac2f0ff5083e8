"""What a run reports, on rank 0 only: a tracker passes every record to its sinks, log.jsonl among them.

log.jsonl has one JSON object per line, complete and in order also after crashes. curves.png is drawn from it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lavis_lite import redaction
from lavis_lite.config.schema import RunConfig
from lavis_lite.io import atomic, disk
from lavis_lite.tracking.sinks import Console, Record, Sink, TensorBoard, WeightsAndBiases

if TYPE_CHECKING:
    from torch import Tensor

# --- log.jsonl --------------------------------------------------------------------------------------------------------
MOST_WAITING = 10_000
"""lines that wait in memory while the file cannot be written; older ones are lost"""


class JsonlLog(Sink):
    """Appends every record to a file. On `open`, lines beyond the start step are dropped in one atomic rewrite.

    A file that cannot be written is reported once, and the run continues: the lines wait and are written as soon as
    possible. A file that was removed is begun again.

    Args:
        path: the file.
        log: takes lines for people.
    """

    def __init__(self, path: Path, log: Callable[[str], None] = print) -> None:
        self.path, self.log_line = Path(path), log
        self._file: BinaryIO | None = None
        self._start: int | None = None
        """the step after which to begin, until that is done"""
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._trouble = False

    def open(self, start_step: int, total_steps: int) -> None:
        """Keep the lines of the first `start_step` steps, continue after them."""
        self._start = start_step
        self._attempt()

    def record(self, record: Record) -> None:
        """Write one line, and hand it to the system at once so that `tail -f` and a crash see it."""
        self._waiting.append((redaction.mask(json.dumps(_plain(record))) + "\n").encode())
        self._attempt()

    def text(self, step: int, tag: str, text: str) -> None:
        """A line {"step", "text", "content"}."""
        self.record({"step": step, "text": tag, "content": text})

    def close(self) -> None:
        """Close the file."""
        if self._waiting:
            self._attempt()
        self._forget_file()

    def _attempt(self) -> None:
        """Write what waits; if that fails, report it once."""
        try:
            self._write()
        except OSError as error:
            self._forget_file()
            if not self._trouble:
                self.log_line(f"{disk.cannot_write(self.path, error)} The run continues; log lines wait in memory.")
            self._trouble = True
            return
        if self._trouble:
            self.log_line(f"{self.path} is written again.")
            self._trouble = False

    def _write(self) -> None:
        file = self._opened()
        while self._waiting:
            end = os.fstat(file.fileno()).st_size
            try:
                _write_whole(file, self._waiting[0])
            except OSError:
                with contextlib.suppress(OSError):  # half a line would spoil the next one
                    os.truncate(file.fileno(), end)
                raise
            self._waiting.popleft()

    def _opened(self) -> BinaryIO:
        if self._file is not None and not self._is_there(self._file):
            self.log_line(f"{self.path} was removed or replaced; a new one is begun.")
            self._forget_file()
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._start is not None:
                self._drop_later_lines(self._start)
                self._start = None
            self._file = open(self.path, "ab", buffering=0)
        return self._file

    def _is_there(self, file: BinaryIO) -> bool:
        """Whether the open file is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _drop_later_lines(self, start: int) -> None:
        if self.path.exists():
            kept = [json.dumps(row) for row in read(self.path) if row.get("step", 0) <= start and start > 0]
            atomic.write_text(self.path, "".join(line + "\n" for line in kept))

    def _forget_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_whole(file: BinaryIO, line: bytes) -> None:
    """Write all of a line, which the system may take in pieces."""
    while line:
        line = line[file.write(line):]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings, also within lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a last line that a kill cut short is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # only ever the line that was being written when the process died
    return rows


# --- curves.png ------------------------------------------------------------------------------------------------------
Rows = list[dict[str, Any]]
Panels = dict[str, dict[str, tuple[list[int], list[float]]]]
"""panel title -> name of a curve -> (steps, values)"""


class Curves(Sink):
    """Draws `curves.png` at the end, or reports that matplotlib is missing."""

    def __init__(self, log: Path, picture: Path, log_line: Callable[[str], None] = print) -> None:
        self.log_file, self.picture, self.log_line = Path(log), Path(picture), log_line

    def close(self) -> None:
        """Draw the log's records, unless an error or a signal ends the run: matplotlib would take seconds then."""
        if sys.exc_info()[0] is not None or not self.log_file.exists():
            return
        if importlib.util.find_spec("matplotlib") is None:
            self.log_line("matplotlib is not installed, so curves.png is not drawn: `pip install matplotlib`.")
        else:
            draw(read(self.log_file), self.picture)


def series(rows: Rows) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of every training loss, in order of first appearance."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        if "split" in row or "hook" in row or "loss" not in row:
            continue
        for name, value in row.items():
            if name.startswith("loss") and isinstance(value, int | float):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return found


def panels(rows: Rows) -> Panels:
    """Every curve of a log by the panel it belongs to: losses, learning rate, agg_metrics by split."""
    train = [row for row in rows if not {"split", "hook"} & row.keys() and isinstance(row.get("lr"), int | float)]
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {"loss (nats)": series(rows)}
    found["learning rate"] = {"lr": ([row["step"] for row in train], [row["lr"] for row in train])} if train else {}
    scores = found["agg_metrics"] = {}
    for row in rows:
        if "split" in row and isinstance(row.get("agg_metrics"), int | float):
            steps, values = scores.setdefault(row["split"], ([], []))
            steps.append(row["step"])
            values.append(row["agg_metrics"])
    trained = bool(found["loss (nats)"])
    return {title: curves for title, curves in found.items() if trained and curves}


def draw(rows: Rows, picture: Path) -> bool:
    """Draw the curves of a log with matplotlib; False if no loss has two points, which a curve needs.

    One panel for the losses, one for the learning rate, and one for `agg_metrics` where splits were evaluated.
    """
    losses = series(rows)
    if all(len(steps) < 2 for steps, _ in losses.values()):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [row for row in rows if "split" in row and isinstance(row.get("agg_metrics"), int | float)]
    figure = Figure(figsize=(8, 7 if not metrics else 9))
    FigureCanvasAgg(figure)  # no display, and no global pyplot state in a notebook
    panels = figure.subplots(2 + bool(metrics), 1, sharex=True, height_ratios=[3, 1] + [1.5] * bool(metrics))
    for name, (steps, values) in losses.items():
        panels[0].plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.2,
                       marker="o" if len(steps) < 3 else None)
    panels[0].set(ylabel="loss (nats)", title=picture.parent.name)
    panels[0].legend(frameon=False)
    train = [row for row in rows if "lr" in row and "hook" not in row]
    panels[1].plot([row["step"] for row in train], [row["lr"] for row in train], color="tab:gray")
    panels[1].set_ylabel("learning rate")
    _draw_metrics(panels, metrics)
    panels[-1].set_xlabel("optimizer step")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.07, top=0.95, hspace=0.08)  # finding a layout draws twice
    figure.savefig(picture, dpi=120)
    return True


def _draw_metrics(panels: Any, metrics: Rows) -> None:
    for split in dict.fromkeys(row["split"] for row in metrics):
        rows = [row for row in metrics if row["split"] == split]
        panels[2].plot([row["step"] for row in rows], [row["agg_metrics"] for row in rows], marker="o", label=split)
    if metrics:
        panels[2].set_ylabel("agg_metrics")
        panels[2].legend(frameon=False)


class Tracker:
    """Several sinks behind one interface; with none (ranks other than 0) every call does nothing.

    Secrets are masked. A sink that cannot write any more (a full disk) is reported once and left out from then on.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)
        self._opened: tuple[int, int] | None = None

    def add(self, sink: Sink) -> None:
        """One more sink, such as a hook's own from its `on_start`; it is opened if the run has begun."""
        self.sinks.append(sink)
        if self._opened is not None:
            sink.open(*self._opened)

    @classmethod
    def from_run(cls, cfg: RunConfig, run_dir: Path, main: bool) -> Tracker:
        """The sinks that a `run:` section asks for: console and log.jsonl always, TensorBoard, W&B, the curves.

        Raises:
            MissingExtraError: W&B is requested and not installed.
        """
        if not main:
            return cls()
        console = Console()
        log = JsonlLog(Path(run_dir) / "log.jsonl", console.log)
        sinks: list[Sink] = [console, log]
        if cfg.tensorboard:
            sinks.append(TensorBoard(Path(run_dir) / "tensorboard", console.log))
        if cfg.wandb:
            sinks.append(WeightsAndBiases(Path(run_dir), cfg.wandb_project))
        sinks.append(Curves(log.path, Path(run_dir) / "curves.png", console.log))
        return cls(sinks)

    def _each(self, call: Callable[[Sink], None]) -> None:
        """Call every sink; those that cannot write are left out from now on."""
        for sink in list(self.sinks):
            try:
                call(sink)
            except BrokenPipeError:
                raise
            except OSError as error:
                self.sinks.remove(sink)
                self.log(f"{type(sink).__name__} cannot write any more ({error.strerror or error}"
                         f"{f': {error.filename}' if error.filename else ''}); it is left out, and the run continues.")

    def open(self, start_step: int, total_steps: int) -> None:
        """See `Sink.open`."""
        self._opened = start_step, total_steps
        self._each(lambda sink: sink.open(start_step, total_steps))

    def advance(self, step: int) -> None:
        """See `Sink.advance`."""
        self._each(lambda sink: sink.advance(step))

    def begin(self, title: str, total: int, done: int = 0, unit: str = "samples") -> None:
        """See `Sink.begin`."""
        self._each(lambda sink: sink.begin(title, total, done, unit))

    def proceed(self, done: int) -> None:
        """See `Sink.proceed`."""
        self._each(lambda sink: sink.proceed(done))

    def end(self) -> None:
        """See `Sink.end`."""
        self._each(lambda sink: sink.end())

    def record(self, record: Record) -> None:
        """See `Sink.record`."""
        masked = redaction.mask_all(record)
        self._each(lambda sink: sink.record(masked))

    def text(self, step: int, tag: str, text: str) -> None:
        """See `Sink.text`."""
        masked = redaction.mask(text)
        self._each(lambda sink: sink.text(step, tag, masked))

    def image(self, step: int, tag: str, image: Tensor) -> None:
        """See `Sink.image`."""
        self._each(lambda sink: sink.image(step, tag, image))

    def log(self, text: str) -> None:
        """See `Sink.log`."""
        masked = redaction.mask(text)
        self._each(lambda sink: sink.log(masked))

    def close(self) -> None:
        """See `Sink.close`."""
        self._each(lambda sink: sink.close())


def parameter_table(counts: Mapping[str, tuple[int, int]]) -> str:
    """Trainable and frozen parameter counts per part, and their sums, as lines of text."""
    rows = [(part, *pair) for part, pair in counts.items()]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'parameters':<{width}}  {'trainable':>15}  {'frozen':>15}"]
    lines += [f"{part:<{width}}  {trainable:>15,}  {frozen:>15,}" for part, trainable, frozen in rows]
    return "\n".join(lines)
