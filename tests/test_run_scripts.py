"""The shell scripts: what they start, and what they say when they cannot. Nothing is installed here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(REPOSITORY / "run_scripts").rglob("*.sh"), REPOSITORY / ".ci" / "run"])


def bash(script: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this checkout; SLURM's and the rendezvous' variables of the caller are not seen."""
    inherited = {key: value for key, value in os.environ.items()
                 if not key.startswith("SLURM_") and key not in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")}
    return subprocess.run(["bash", str(REPOSITORY / script), *arguments], cwd=cwd, env={**inherited, **env},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.fixture()
def echo_venv(tmp_path: Path) -> Path:
    """A folder that looks like a virtual environment whose python prints its arguments."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PWD: python $*"\n')
    python.chmod(0o755)
    return tmp_path / "venv"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_state_their_cost(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#") and os.access(script, os.X_OK)
    assert "\n# Cost: " in text or script.parent.name == ".ci"


def test_ci_runs_the_test_command_and_other_kernels() -> None:
    text = (REPOSITORY / ".ci" / "run").read_text()
    assert "bash run_scripts/test.sh" in text and "test_matrix.sh --numeric --kernels default" in text


def test_the_matrix_runs_every_combination_as_on_that_machine(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("""#!/bin/sh
case "$*" in
    *pytest*) echo "RUN ${ATEN_CPU_CAPABILITY:-unset} $OMP_NUM_THREADS $LAVIS_LITE_TEST_THREADS: $*"
              [ "$ATEN_CPU_CAPABILITY $OMP_NUM_THREADS" != "avx2 4" ] ;;
    *get_cpu_capability*) echo "${ATEN_CPU_CAPABILITY:-AVX512}" ;;
esac
""")
    python.chmod(0o755)
    env = {"LAVIS_LITE_VENV": str(tmp_path / "venv"), "ATEN_CPU_CAPABILITY": "stale"}
    result = bash("run_scripts/test_matrix.sh", "--numeric", "--threads", "1,4", "--", "-k", "x", cwd=tmp_path, **env)
    runs = [line for line in result.stdout.splitlines() if line.startswith("RUN")]
    assert [run.split(":")[0] for run in runs] == [
        f"RUN {kernels} {count} {count}" for kernels in ("default", "avx2", "unset") for count in (1, 4)]
    named = [word for word in runs[0].split() if word.startswith("tests/")]
    assert {"tests/models", "tests/parity", "tests/runners/test_objective.py"} < set(named)
    assert all(run.endswith(f"{' '.join(named)} -k x") for run in runs)
    assert all((REPOSITORY / name).exists() for name in named)
    assert result.returncode == 1, "one combination failed"
    table = [line.split() for line in result.stdout.splitlines()[-7:]]
    assert table[0] == ["kernels", "threads", "capability", "seconds", "result"]
    assert [row[-1] for row in table[1:]] == ["passed", "passed", "passed", "FAILED", "passed", "passed"]
    assert bash("run_scripts/test_matrix.sh", "--kernels", "sse", cwd=tmp_path, **env).returncode == 2


@pytest.mark.parametrize("faulty", ["ruff", "mypy", "pytest", "nothing"])
def test_each_check_runs_and_its_faults_are_in_the_exit_code(faulty: str, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"""#!/bin/sh
case "$*" in -m*) echo "RUN $2"; [ "$2" != {faulty} ] ;; esac
""")
    python.chmod(0o755)
    result = bash("run_scripts/test.sh", cwd=tmp_path, LAVIS_LITE_VENV=str(tmp_path / "venv"))
    assert {"RUN ruff", "[mypy] RUN mypy", "RUN pytest"} <= set(result.stdout.splitlines())
    assert result.returncode == int(faulty != "nothing")
    assert ("found faults" in result.stderr) is (faulty in ("ruff", "mypy"))


def test_an_old_or_absent_python_is_refused(tmp_path: Path) -> None:
    venv = str(tmp_path / "venv")
    result = bash("run_scripts/setup_env.sh", cwd=tmp_path, PYTHON="no-such-python", LAVIS_LITE_VENV=venv)
    assert result.returncode == 1
    assert "Python 3.10 or newer is needed" in result.stderr and "PYTHON=/path/to" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_broken_environment_is_not_touched(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = bash("run_scripts/setup_env.sh", cwd=tmp_path, LAVIS_LITE_VENV=str(tmp_path / "venv"))
    assert result.returncode == 1 and "no working environment" in result.stderr
    assert [path.name for path in python.parent.iterdir()] == ["python"]


def test_torchrun_starts_processes_of_one_machine(echo_venv: Path, tmp_path: Path) -> None:
    venv = str(echo_venv)
    result = bash("run_scripts/train_torchrun.sh", "2", "a.yaml", "--dry-run", cwd=tmp_path, LAVIS_LITE_VENV=venv)
    assert result.stdout == (f"{REPOSITORY}: python -m torch.distributed.run --standalone --nproc-per-node 2 "
                             "train.py --cfg-path a.yaml --dry-run\n")


def test_torchrun_of_several_machines_needs_to_know_its_place(echo_venv: Path, tmp_path: Path) -> None:
    known = {"LAVIS_LITE_VENV": str(echo_venv), "NNODES": "2", "MASTER_ADDR": "first"}
    result = bash("run_scripts/train_torchrun.sh", "8", "a.yaml", cwd=tmp_path, **known, NODE_RANK="1")
    assert "--nnodes 2 --node-rank 1 --master-addr first --master-port 29500 --nproc-per-node 8" in result.stdout
    result = bash("run_scripts/train_torchrun.sh", "8", "a.yaml", cwd=tmp_path, **known)
    assert result.returncode != 0 and "NODE_RANK" in result.stderr


def test_slurm_starts_one_process_per_task_and_resumes(echo_venv: Path, tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "srun $*"\n')
    srun.chmod(0o755)
    result = bash("run_scripts/train_slurm.sh", "a.yaml", "--options", "run.seed=1", cwd=tmp_path,
                  PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", LAVIS_LITE_VENV=str(echo_venv))
    assert result.stdout == (f"srun --kill-on-bad-exit=1 {echo_venv}/bin/python train.py --cfg-path a.yaml "
                             "--resume auto --options run.seed=1\n")


@pytest.mark.parametrize(("code", "state", "requeued"), [
    (143, "RUNNING", True),  # the signal before the time limit
    (143, "CANCELLED", False), (143, "COMPLETING", False),  # scancel
    (0, "RUNNING", False), (1, "RUNNING", False), (2, "RUNNING", False), (130, "RUNNING", False),
    (129, "RUNNING", False),
])
def test_slurm_puts_a_job_that_met_its_time_limit_back_into_the_queue(code: int, state: str, requeued: bool,
                                                                      echo_venv: Path, tmp_path: Path) -> None:
    """With programs in place of srun and scontrol; the codes are those of docs/reference/reliability.md."""
    calls = tmp_path / "calls"
    answer = f'echo "$*" >> {calls}; echo "   JobState={state} Reason=None"'
    for name, does in {"srun": f"exit {code}", "scontrol": answer}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    result = bash("run_scripts/train_slurm.sh", "a.yaml", cwd=tmp_path, SLURM_JOB_ID="77",
                  PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", LAVIS_LITE_VENV=str(echo_venv))
    assert result.returncode == code
    asked = calls.read_text().splitlines() if calls.exists() else []
    assert ("requeue 77" in asked) is requeued
    assert ("goes back into the queue" in result.stdout) is requeued


@pytest.mark.parametrize("script", ["train_torchrun.sh", "train_slurm.sh"])
def test_launchers_say_how_they_are_used(script: str, tmp_path: Path) -> None:
    result = bash(f"run_scripts/{script}", cwd=tmp_path)
    assert result.returncode == 2 and "RECIPE.yaml" in result.stderr


def test_public_workflows_run_what_is_here() -> None:
    """Scripts and configuration files that the workflows and the Dockerfile name are in the repository."""
    [workflow] = (REPOSITORY / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert set(jobs) == {"test", "kernels", "docs"} and "bash run_scripts/test.sh" in commands
    named = [word for command in commands for word in command.split() if word.startswith("run_scripts/")]
    image = (REPOSITORY / "Dockerfile").read_text()
    named += re.findall(r"/src/(\S+)", image) + ["mkdocs.yml"]
    assert [name for name in named if not (REPOSITORY / name).is_file()] == [] and "ENTRYPOINT" in image
