"""What a run reports, on rank 0 only: a tracker passes every record to its sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_lite import redaction
from lavis_lite.config.schema import RunConfig
from lavis_lite.tracking.jsonl import Curves, JsonlLog
from lavis_lite.tracking.sinks import Console, Record, Sink, TensorBoard, WeightsAndBiases

if TYPE_CHECKING:
    from torch import Tensor


class Tracker:
    """Several sinks behind one face; with none (ranks other than 0) every call does nothing.

    Secrets are masked. A sink that cannot write any more (a full disk) is reported once and left out from then on.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

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
