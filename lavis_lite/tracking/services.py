"""TensorBoard and Weights & Biases. Neither is needed, neither needs a network."""

from __future__ import annotations

import html
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_lite.errors import MissingExtraError
from lavis_lite.tracking.sink import Record, Sink, flat_scalars

if TYPE_CHECKING:
    from torch import Tensor


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
