"""Whether this machine has what torch.compile needs; asked before a run, without torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def why_not(device: str) -> str | None:
    """What torch.compile lacks here, as a sentence with its remedy; None if it lacks nothing.

    Args:
        device: as `run.device`. A CPU needs a C++ compiler, a GPU a C compiler for triton's launchers.
    """
    known = {"cpu": [os.environ.get("CXX") or "g++"], "cuda": [os.environ.get("CC") or "gcc", "clang"]}
    wanted = known.get(device.partition(":")[0], [*known["cpu"], *known["cuda"]])
    if not any(map(shutil.which, wanted)):
        names = " or ".join(dict.fromkeys(wanted))
        return (f"torch.compile needs a compiler, and there is no {names} on this machine. "
                "Install one (apt-get install g++), or set run.compile=none.")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return (f"torch.compile needs Python's headers, and {header} is missing. Install "
                "them (apt-get install python3-dev), or set run.compile=none.")
    return None
