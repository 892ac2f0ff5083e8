"""This process among all, from the environment that the launcher (torchrun, srun or none) set; its cores."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from lavis_lite.errors import DistributedError

_SPECIAL_STEPS = 0xFFFFFFF0
"""SLURM numbers its batch step, interactive step and external step from here on"""


@dataclass(frozen=True)
class Launch:
    """This process among all.

    Attributes:
        note: a message for the user; "": none.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "single process"
    note: str = ""


def launch_from_environment(env: dict[str, str] | None = None) -> Launch:
    """Read torchrun's or SLURM's variables.

    SLURM sets SLURM_NTASKS for the whole allocation, but only srun starts that many processes. The batch script itself
    and an interactive shell are one process.

    Raises:
        DistributedError: WORLD_SIZE > 1 is set but rank or master address are not; or a value is not a number.
    """
    env = dict(os.environ if env is None else env)
    if _number(env, "WORLD_SIZE", 1) > 1 or "RANK" in env:
        return _torchrun(env)
    tasks = _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1))
    if tasks <= 1:
        return Launch()
    if "SLURM_PROCID" in env and _is_srun_step(env):
        return _slurm(env, tasks)
    return Launch(note=f"SLURM_NTASKS is {tasks}, but srun did not start this process, so it runs alone. For {tasks} "
                       "processes: `srun python train.py ...`.")


def named_rank() -> str:
    """This process's rank as the launcher's variables have it, unchecked, for messages; "" without a launcher."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""


def _number(env: dict[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise DistributedError(f"the environment has {name}={text}, which is not a number; start with torchrun or "
                               f"srun, or unset {name}.") from None


def _torchrun(env: dict[str, str]) -> Launch:
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise DistributedError(
            f"the environment has WORLD_SIZE={env.get('WORLD_SIZE')} but not {', '.join(missing)}. Start several "
            "processes with `torchrun --nproc_per_node=N train.py ...`, or unset WORLD_SIZE to run one.")
    rank, world_size = _number(env, "RANK", 0), _number(env, "WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise DistributedError(f"RANK={rank} is not below WORLD_SIZE={world_size}.")
    return Launch(rank, world_size, _number(env, "LOCAL_RANK", rank), "torchrun")


def _is_srun_step(env: dict[str, str]) -> bool:
    """Whether srun started this process as one of a step's tasks, and not as the shell of `srun --pty`."""
    step = env.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) >= _SPECIAL_STEPS:
        return False
    if "SLURM_STEP_NUM_TASKS" not in env and env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False
    return not ("SLURM_PTY_PORT" in env and sys.stdin is not None and sys.stdin.isatty())


def _slurm(env: dict[str, str], tasks: int) -> Launch:
    """A task of srun: rank and size from its variables, the first host of the node list as master."""
    launch = Launch(_number(env, "SLURM_PROCID", 0), tasks, _number(env, "SLURM_LOCALID", 0), "SLURM")
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    if not env.get("MASTER_ADDR"):
        if not hosts:
            raise DistributedError("SLURM set SLURM_NTASKS > 1 but neither SLURM_JOB_NODELIST nor MASTER_ADDR is set; "
                                   "export MASTER_ADDR=<host of rank 0> before srun.")
        os.environ["MASTER_ADDR"] = first_host(hosts)
    # steps that share a node must not share a port: derive it from the ids of job and step
    job = _number(env, "SLURM_JOB_ID", 0) + 1000 * _number(env, "SLURM_STEP_ID", 0)
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 20000))
    return launch


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: "gpu[003-007,9],cpu1" -> "gpu003"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise DistributedError(f"cannot read SLURM's node list {nodelist!r}; export MASTER_ADDR=<host of rank 0>.")
    return match.group(1) + (match.group(2) or "")


def usable_cores() -> int:
    """Processor cores that this process may use; a scheduler may allow fewer than the machine has."""
    allowed = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return len(allowed(0)) if allowed else os.cpu_count() or 1
