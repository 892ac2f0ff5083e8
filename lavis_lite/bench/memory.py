"""Peak memory of one side of a comparison: run in a process of its own, `python -m lavis_lite.bench.memory JSON`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from lavis_lite.bench.cases import cases
from lavis_lite.bench.options import Options
from lavis_lite.errors import LavisLiteError

TURNS = 3
MIB = 2 ** 20


def peak_of(options: Options, case: int, side: str, threads: int) -> int | None:
    """Most memory of a side in MiB, measured in a fresh process after three turns.

    On a CPU: resident memory, Python and libraries included. On a GPU: what torch allocated there.

    Raises:
        LavisLiteError: the process failed.
    """
    asked = json.dumps({"options": asdict(options), "case": case, "side": side, "threads": threads})
    done = subprocess.run([sys.executable, "-m", "lavis_lite.bench.memory", asked], capture_output=True, text=True)
    if done.returncode:
        raise LavisLiteError(f"the memory of {options.what} ({side}) could not be measured: "
                             f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}. --no-memory leaves it out.")
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else int(found)


def peak_here(device: torch.device) -> int | None:
    """Most memory of this process so far in MiB; None if the system does not count it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // MIB
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)


def main(argv: Sequence[str]) -> None:
    """Do three turns of a side and print the peak as JSON."""
    asked = json.loads(argv[0])
    torch.set_num_threads(asked["threads"])
    options = Options(**{**asked["options"], "against": None})
    device = options.torch_device()
    case = cases(options, device, seed=0)[asked["case"]]
    side = case.build(asked["side"])
    for number in range(TURNS):
        side.turn(case.batch(number))
    print(json.dumps(peak_here(device)))


if __name__ == "__main__":
    main(sys.argv[1:])
