"""Commands of the package in processes that are forked from one which has imported everything: no import, no waiting.

    python -m tests.reliability.zygote

reads jobs as lines of JSON: {"command", "argv", "env", "out", "err", "open_files", "method"} starts one and answers
its process id; {"wait": pid} answers its exit code, or null while it runs; {"import": module} imports what later jobs
need besides.
Each job leads a session of its own, so that what it leaves behind can be found, and ends as an interpreter ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import sys
from typing import Any


def preload() -> None:
    """Import what the jobs need."""
    import torch

    import lavis_lite.cli.data_prepare
    import lavis_lite.cli.data_shard
    import lavis_lite.cli.train
    import lavis_lite.dry_run  # noqa: F401
    from lavis_lite.tracking import tracker

    tracker.draw = lambda rows, picture: False  # curves.png would take two thirds of the time of a run
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()  # imports half of torch
    gc.freeze()  # forks need not look through all this when they end


def become(job: dict[str, Any]) -> None:
    """Turn this fork into the process of a job."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv = ["lavis_lite", *job["argv"]]
    multiprocessing.current_process()._config["semprefix"] = f"/{semaphore_prefix(os.getpid())}"  # type: ignore[attr-defined]
    if job.get("method"):
        multiprocessing.set_start_method(job["method"], force=True)
    limit_open_files(job.get("open_files"))


def semaphore_prefix(pid: int) -> str:
    """How the names of a job's semaphores begin, so that they can be told from those of other programs."""
    return f"lt{pid}"


def limit_open_files(limit: int | None) -> None:
    """Lower the limit of open files."""
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def exit_code(pid: int) -> int | None:
    """Of a finished job, negative for a signal; None while it runs."""
    finished, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if finished else None


def main() -> int:
    """Serve until the input ends."""
    preload()
    while line := sys.stdin.readline():
        job = json.loads(line)
        if "wait" in job:
            answer = exit_code(job["wait"])
        elif "import" in job:
            answer = importlib.import_module(job["import"]).__name__
            gc.freeze()
        elif not (answer := os.fork()):
            become(job)
            from lavis_lite.cli.main import run_command
            from lavis_lite.process.exits import leave

            leave(run_command(job["command"], job["argv"]))
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
