"""How many files of the package a reader has to follow: those that one training step, or one evaluation, runs.

    python -m benchmarks.path_length            # both walks
    python -m benchmarks.path_length stage1     # one of them
    python -m benchmarks.path_length --files    # with the name of every file

A file counts if a function of it runs between the command line and the exit, in the process itself (`sys.setprofile`);
what only runs while a module is imported does not count. Each walk runs twice in a process of its own: the first run
fills a cache of a small generated world, the second one is counted.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "lavis_lite"
WORLD = "prepare_args={train: 24, val: 8, test: 8, ood: 4, seed: 3}"
SHARED = ["run.num_workers=0", "run.seed=11"]
WALKS: dict[str, tuple[str, list[str]]] = {
    "stage1": ("train", ["--cfg-path", "projects/blip2/stage1.yaml", "--options",
                         f"datasets.mini_world_caption.{WORLD}", "run.batch_size_train=4", "run.max_iters=1",
                         "run.valid_splits=[]", "run.test_splits=[]", *SHARED]),
    "vqa": ("evaluate", ["--cfg-path", "projects/blip2/eval/mini_vqa_opt.yaml", "--options",
                         f"datasets.mini_world_vqa.{WORLD}", "run.batch_size_eval=8", *SHARED]),
}
"""name -> (command, arguments)"""


def functions_run(command: str, arguments: list[str]) -> set[CodeType]:
    """The package's functions that a command runs, in all threads of this process."""
    from lavis_lite.cli.main import run_command

    entered: set[CodeType] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            entered.add(frame.f_code)

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        code = run_command(command, arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if code:
        raise SystemExit(f"{command} ended with exit code {code}")
    # bodies of modules and classes run too, but they are no functions: these alone have optimised locals
    return {code for code in entered if code.co_flags & inspect.CO_OPTIMIZED
            and code.co_filename.startswith(f"{PACKAGE}{os.sep}")}


def count(name: str, cache: str) -> dict[str, int]:
    """File (relative to the package) -> number of its functions that ran in a walk."""
    command, arguments = WALKS[name]
    with tempfile.TemporaryDirectory() as output:
        run = [sys.executable, "-m", "benchmarks.path_length", "--counted", command,
               *arguments, f"run.output_dir={output}"]
        environment = {**os.environ, "LAVIS_LITE_CACHE": cache, "LAVIS_LITE_OFFLINE": "1"}
        for _ in range(2):
            done = subprocess.run(run, cwd=PACKAGE.parent, env=environment, text=True, capture_output=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip() or done.stdout.strip()}")
    files: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return files


def report(name: str, files: dict[str, int], with_files: bool) -> str:
    """Lines for people: the sum, then each room with its files and functions."""
    rooms = Counter(path.split("/")[0] if "/" in path else "(top level)" for path in files)
    lines = [f"{name}: {len(files)} files, {sum(files.values())} functions"]
    lines += [f"  {room:14} {number:3} files, {sum(files[path] for path in _of(files, room)):4} functions"
              for room, number in rooms.most_common()]
    return "\n".join([*lines, *(f"    {files[path]:3}  {path}" for path in sorted(files) if with_files)])


def _of(files: dict[str, int], room: str) -> list[str]:
    return [path for path in files if (path.split("/")[0] if "/" in path else "(top level)") == room]


def main() -> None:
    """Count what the command line names."""
    if sys.argv[1:2] == ["--counted"]:
        ran = functions_run(sys.argv[2], sys.argv[3:])
        print(json.dumps(Counter(str(Path(code.co_filename).relative_to(PACKAGE)) for code in ran)))
        return
    parser = argparse.ArgumentParser(description="files and functions of the package that a command runs")
    parser.add_argument("walks", nargs="*", help=f"of {', '.join(WALKS)}; default: all")
    parser.add_argument("--files", action="store_true", help="name every file")
    parser.add_argument("--cache", help="folder that keeps the generated world between calls")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in given.walks or WALKS:
            print(report(name, count(name, given.cache or folder), given.files))


if __name__ == "__main__":
    main()
