"""Which run, and which checkpoint, a folder refers to; nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from lavis_lite.checkpoints.manifest import read_manifest
from lavis_lite.errors import CheckpointError

CHECKPOINTS = ("pretrained_stage1", "pretrained", "finetuned")
"""keys of a model section that name checkpoints, in the order of loading"""
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt")
DEPTH = 4
"""levels of folders above a run that may refer to it"""


def steps_of(run_dir: Path) -> list[Path]:
    """The checkpoint folders of one run, newest step first."""
    found = [path for path in (Path(run_dir) / "checkpoints").glob("step_*")
             if path.is_dir() and re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("step_"))


def saved_at(folder: Path) -> tuple[str, int]:
    """(time of saving, step): what orders the checkpoints of several runs."""
    try:
        return read_manifest(folder).saved_at, step_of(folder)
    except CheckpointError:  # damaged: its folder's time places it among the others, where it will be reported
        return datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc).isoformat(), step_of(folder)


def runs_below(folder: Path) -> Iterator[Path]:
    """The run folders with checkpoints below a folder."""
    for depth in range(1, DEPTH + 1):
        for checkpoints in sorted(folder.glob("*/" * depth + "checkpoints")):
            if steps_of(checkpoints.parent):
                yield checkpoints.parent


def newest_run(runs: Sequence[Path]) -> Path:
    """The run that saved last."""
    return max(runs, key=lambda run: max(map(saved_at, steps_of(run))))


def best_or_last(run_dir: Path) -> tuple[Path, str]:
    """(checkpoint folder, reason) of a run that has some: the best, or the last if there is no best one."""
    folders = steps_of(run_dir)
    last = max(folders, key=saved_at)
    try:
        best = _best(run_dir)
    except CheckpointError as error:
        return last, f"the last; {error}"
    if best is None:
        return last, "the last; no validation chose a best one"
    if best[0] not in folders:
        return last, f"the last; the best one, {best[0].name}, is not there any more"
    return best


def _best(run_dir: Path) -> tuple[Path, str] | None:
    """What best.json says; None if there is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = run_dir / "checkpoints" / "best.json"
    if not path.is_file():
        return None
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        folder = run_dir / "checkpoints" / f"step_{int(best['step']):08d}"
        return folder, f"the best by {best['split']} agg_metrics {float(best['metric']):.4g}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"best.json cannot be read: {error}") from error


def checkpoint_of_run(path: Path) -> Path:
    """The checkpoint folder that a run folder, or a folder above runs (the one that saved last), refers to.

    It is the best one if validation chose one, else the last. Any other path is itself.

    Raises:
        CheckpointError: best.json cannot be read.
    """
    if not path.is_dir() or any(file.suffix in WEIGHT_FILES for file in path.iterdir()):
        return path  # a checkpoint itself
    runs = [path] if steps_of(path) else list(runs_below(path))
    if not runs:
        return path
    run = newest_run(runs)
    try:
        _best(run)
    except CheckpointError as error:
        raise CheckpointError(f"{run / 'checkpoints'}: {error}. Name a checkpoint folder in it.") from error
    return best_or_last(run)[0]
