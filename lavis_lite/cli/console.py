"""What commands are called, and lines that only one of several processes prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

SCRIPT = "lavis-lite"
"""the command that installing the package brings"""


def program(command: str) -> str:
    """How `command` was started: `train.py`, `lavis-lite train`, or else `python -m lavis_lite train`."""
    called = Path(sys.argv[0]).name
    if called == f"{command}.py":
        return called
    return f"{SCRIPT if called == SCRIPT else 'python -m lavis_lite'} {command}"


def print_once(text: str, file: TextIO | None = None) -> None:
    """Print a line, in the first of all processes only; standard output by default."""
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0":
        print(text, file=file or sys.stdout, flush=True)
