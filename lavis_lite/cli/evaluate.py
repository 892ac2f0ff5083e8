"""`evaluate.py`: score a model on the splits its YAML names; train.py with `run.evaluate=true`."""

from __future__ import annotations

from collections.abc import Sequence

from lavis_lite.cli import train


def main(argv: Sequence[str]) -> int:
    """Compose, check, and evaluate; a user's own --options come later and win."""
    return train.main(argv, "evaluate.py", options=["run.evaluate=true"])
