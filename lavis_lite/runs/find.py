"""Finds the checkpoint of a run that a user names.

A run is named by its folder, by one of its checkpoint folders, or by a folder above runs. The latter names the run that
saved last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_lite.checkpoints.manifest import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    best_or_last,
    newest_run,
    runs_below,
    saved_at,
    steps_of,
)
from lavis_lite.config.layers import Layer, read_yaml
from lavis_lite.config.schema import ModelConfig
from lavis_lite.errors import CheckpointError, ConfigError, did_you_mean
from lavis_lite.runners import checkpointing

EVALUATIONS = "evaluations"
"""folder within a run folder, with one folder per evaluation, each with its own results/"""
SHOWN = 5
"""most runs in a message"""


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run, verified to the last byte.

    Attributes:
        run_dir: folder of the run; the checkpoint's own folder if it is in no run.
        folder: folder of the checkpoint.
        reason: why it is this one, as a clause.
        weights: hook that keeps the weights to take, such as "ema"; "": those that were trained.
    """

    run_dir: Path
    folder: Path
    reason: str
    weights: str = ""

    def describe(self) -> str:
        """The folder and the reason for its choice."""
        return f"{self.folder} ({self.reason})"

    def config_layer(self) -> Layer:
        """The configuration that the run was trained with.

        Raises:
            ConfigError: neither the run nor the checkpoint has a config.yaml.
        """
        paths = [folder / CONFIG for folder in (self.run_dir, self.folder)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ConfigError(f"{self.run_dir} has no {CONFIG}, so the model of its checkpoints is unknown. Use the "
                              "recipe that trained it: evaluate.py --cfg-path RECIPE.yaml "
                              f"--resume {self.folder}")
        return Layer(str(path), read_yaml(path))

    def start_keys(self, section: ModelConfig) -> dict[str, Any]:
        """Keys and values of a model section that make the model start from this checkpoint and from no other.

        Raises:
            CheckpointError: the checkpoint has no weights of the hook.
        """
        path = self.folder.absolute()
        if self.weights and not (path := path / f"{self.weights}.safetensors").is_file():
            kept = [file.stem for file in self.folder.glob("*.safetensors") if file.name != WEIGHTS]
            hint = did_you_mean(self.weights, kept) if kept else "a run keeps some if run.hooks has ema."
            raise CheckpointError(f"{self.folder} has no weights {self.weights!r} besides the trained ones; {hint}")
        values = {"load_pretrained": True, "pretrained": str(path), "load_finetuned": False}
        return {**values, "pretrained_stage1": None} if "pretrained_stage1" in section else values

    def evaluations(self) -> Path | None:
        """Folder of the run's evaluations; None for a checkpoint outside of a run."""
        return None if self.run_dir == self.folder else self.run_dir / EVALUATIONS


def find_checkpoint(run: str | Path, checkpoint: str | None = None) -> RunCheckpoint:
    """The checkpoint that a user names.

    Args:
        run: a run folder, a checkpoint folder, or a folder above runs: then the run that saved last.
        checkpoint: "best" (chosen by validation; the last one if no validation chose), "last" or "step_N"; by
            default "best".

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged.
        ConfigError: `run` is a checkpoint folder, and `checkpoint` names another.
    """
    path = _with_a_name(Path(run).expanduser())
    if path.is_file():
        raise CheckpointError(f"{run} is a file, and a run is a folder. To take the weights of a file, use --options "
                              "model.load_pretrained=true model.pretrained=FILE.")
    if not path.is_dir():
        raise CheckpointError(f"there is no run folder {run}.{_neighbours(path)}")
    if (path / MANIFEST).is_file():
        if checkpoint is not None:
            raise ConfigError(f"{run} is a checkpoint itself: leave --checkpoint {checkpoint} out, or name its run.")
        return _verified(RunCheckpoint(run_of(path), path, "the one that was named"), path)
    run_dir, why = _locate(path)
    folder, reason = _choose(run_dir, checkpoint)
    return _verified(RunCheckpoint(run_dir, folder, f"{reason}{why}"), path)


def _with_a_name(path: Path) -> Path:
    """The same folder; "." and ".." as an absolute path, because parents' names identify the run."""
    return path if path.name not in ("", "..") or steps_of(path) else Path(os.path.abspath(path))


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint folder; the folder itself if it is in no run."""
    return checkpoint.parent.parent if checkpoint.absolute().parent.name == "checkpoints" else checkpoint


def _locate(path: Path) -> tuple[Path, str]:
    """(run folder, why this one of several was chosen, as a clause)."""
    if steps_of(path):
        return path, ""
    if path.absolute().name == "checkpoints" and steps_of(path.parent):
        return path.parent, ""
    runs = list(runs_below(path))
    if not runs:
        raise CheckpointError(_why_no_run(path))
    newest = newest_run(runs)
    return newest, f"; of the {len(runs)} runs in {path} this one saved last" if len(runs) > 1 else ""


def _why_no_run(path: Path) -> str:
    config = path / CONFIG
    if not config.is_file():
        return (f"{path} is neither a run folder nor a folder above runs: there is no checkpoints/step_N in it or "
                "below. A run is <run.output_dir>/<time>.")
    if path.absolute().parent.name == EVALUATIONS:
        return (f"{path} is the folder of an evaluation; name its run, {path.absolute().parent.parent}, or evaluate it "
                f"again with --cfg-path {config}")
    return (f"{path} has no checkpoint: nothing was saved there, or it is the folder of an evaluation. A training "
            "saves by run.save_every, run.save_freq and run.save_last.")


def _choose(run_dir: Path, checkpoint: str | None) -> tuple[Path, str]:
    """(checkpoint folder, why it was chosen) of a run that has checkpoints."""
    folders = steps_of(run_dir)
    if checkpoint in (None, "best"):
        return best_or_last(run_dir)
    if checkpoint == "last":
        return max(folders, key=saved_at), "the last"
    number = str(checkpoint).removeprefix("step_")
    for folder in folders:
        if number.isdigit() and int(number) == int(folder.name.removeprefix("step_")):
            return folder, "the one that was named"
    raise CheckpointError(f"{run_dir} has no checkpoint {checkpoint!r}; it has {_names(folders)}, and `best` and "
                          "`last` each name one of them.")


def _verified(chosen: RunCheckpoint, named: Path) -> RunCheckpoint:
    """The checkpoint, if it is undamaged. The error names the other checkpoints and the other runs below `named`."""
    if errors := checkpointing.verify(chosen.folder):
        others = [folder for folder in steps_of(chosen.run_dir) if folder != chosen.folder]
        advice = f" The run's other checkpoints: {_names(others)}; choose one by --checkpoint." if others else ""
        runs = [str(run) for run in runs_below(named) if run != chosen.run_dir]
        advice += f" Other runs, to be named with --run: {', '.join(runs[-SHOWN:])}." if runs else ""
        raise CheckpointError(f"{chosen.folder} ({chosen.reason}) is damaged: {' '.join(errors)}{advice}")
    return chosen


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(f"step_{int(folder.name.removeprefix('step_'))}" for folder in reversed(folders))


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    names = [other.name for other in path.parent.iterdir() if other.is_dir()]
    return f" In {path.parent}: {did_you_mean(path.name, names)}" if names else ""


def hint_at_run(cfg_path: str) -> str:
    """A hint if the configuration is that of a run, which names the weights that the run started from; else ""."""
    run_dir = Path(cfg_path).parent
    if Path(cfg_path).name != CONFIG or not steps_of(run_dir):
        return ""
    return f"note: this evaluates the weights that the run started from; for those it trained use --run {run_dir}"
