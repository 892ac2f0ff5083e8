"""Time of `import lavis_lite` in a fresh interpreter, as a user feels it: wall time, interpreter start included.

    python benchmarks/import_time.py [--runs 20] [--torch]

Prints one dated line per statement: median, fastest and slowest of the runs, after one run that fills the disk cache.
Cost: about 5 seconds; with --torch (the same for `import torch`, to compare) about a minute.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STATEMENTS = ("pass", "import lavis_lite", "import lavis_lite; lavis_lite.list_models()")


def seconds(statement: str) -> float:
    """Wall time of one fresh interpreter that runs a statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=REPOSITORY, check=True)
    return time.perf_counter() - start


def measure(statement: str, runs: int) -> str:
    """One line for benchmarks/README.md."""
    seconds(statement)
    times = [seconds(statement) for _ in range(runs)]
    return (f"{datetime.date.today()}  {os.cpu_count()} CPUs  python {platform.python_version()}  {statement:45}"
            f"  median {statistics.median(times):.3f} s  ({min(times):.3f} to {max(times):.3f}, {runs} runs)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="measure `import torch` as well")
    arguments = parser.parse_args()
    for statement in (*STATEMENTS, *(["import torch"] if arguments.torch else [])):
        print(measure(statement, arguments.runs), flush=True)


if __name__ == "__main__":
    main()
