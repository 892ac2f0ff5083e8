"""What can be told of a run's folder without loading anything: which checkpoint it stands for."""

from __future__ import annotations

import json
from pathlib import Path

from lavis_lite.errors import CheckpointError

CHECKPOINTS = ("pretrained_stage1", "pretrained", "finetuned")
"""keys of a model section that name checkpoints, in the order of loading"""


def checkpoint_of_run(path: Path) -> Path:
    """The checkpoint folder that a run folder stands for: the best where validation chose one, else the last.

    Any other path is itself.
    """
    for name in ("best.json", "last.json"):
        pointer = path / "checkpoints" / name
        if pointer.is_file():
            folder = _pointer(pointer)
            found = path / "checkpoints" / Path(str(folder)).name
            if folder and found.is_dir():
                return found
    return path


def _pointer(path: Path) -> str | None:
    """The checkpoint that best.json or last.json names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{path}: unreadable ({fault}); name a checkpoint folder beside it.") from fault
    return content.get("checkpoint") if isinstance(content, dict) else None
