"""Time of `import lavis_lite` in a fresh interpreter, as a user feels it: wall time, interpreter start included.

    python benchmarks/import_time.py [--runs 20] [--torch] [--first]

Prints one dated line per statement: median, fastest and slowest of the runs, after one run that fills the disk cache.
Cost: about 5 seconds; with --torch (the same for `import torch`, to compare) about a minute. --first measures the
processor time of a printed configuration, of a whole run of one step, and of a first caption: 5 seconds a run and row.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
STATEMENTS = ("pass", "import lavis_lite", "import lavis_lite; lavis_lite.list_models()")
RUN = ("from lavis_lite.cli.main import main; "
       "main('train --cfg-path projects/blip2/stage1.yaml {} --options {}'.split())")
FIRST = {
    "--print-config": RUN.format("--print-config", "run.num_workers=0"),
    "a run of one step": RUN.format("", "run.max_iters=1 run.valid_splits=[] run.test_splits=[] run.num_workers=0 "
                                    "run.save_last=false run.output_dir=OUT"),
    "a first caption": "import torch; from lavis_lite import load_model; "
                       "load_model('blip2_opt', 'mini').generate({'image': torch.zeros(1, 3, 64, 64)})",
    "import torch": "import torch",
}
"""what is done first -> a statement"""


def seconds(statement: str) -> float:
    """Wall time of one fresh interpreter that runs a statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=REPOSITORY, check=True)
    return time.perf_counter() - start


def processor_seconds(statement: str) -> float:
    """Processor time of one fresh interpreter that runs a statement, in all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", statement.replace("OUT", folder)], cwd=REPOSITORY, check=True,
                       stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(name: str, statement: str, runs: int, clock: Callable[[str], float] = seconds) -> str:
    """One line for benchmarks/README.md."""
    clock(statement)
    times = [clock(statement) for _ in range(runs)]
    return (f"{datetime.date.today()}  {os.cpu_count()} CPUs  python {platform.python_version()}  {name:45}"
            f"  median {statistics.median(times):.3f} s  ({min(times):.3f} to {max(times):.3f}, {runs} runs)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--torch", action="store_true", help="measure `import torch` as well")
    parser.add_argument("--first", action="store_true", help="measure what is done first, in processor time")
    arguments = parser.parse_args()
    if arguments.first:
        for name, statement in FIRST.items():
            print(measure(name, statement, arguments.runs, processor_seconds), flush=True)
        return
    for statement in (*STATEMENTS, *(["import torch"] if arguments.torch else [])):
        print(measure(statement, statement, arguments.runs), flush=True)


if __name__ == "__main__":
    main()
