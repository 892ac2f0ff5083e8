"""Stage 1 as a user runs it: a whole run, resume after SIGKILL, two ranks, SLURM's variables, dry run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.end_to_end.conftest import ROOT, Train, command, environment, losses, read_log
from tests.helpers.processes import free_port
from tests.reliability.harness import Job, Zygote, finish, start, texts, wait_for, warm_process

KEYS = {"step", "loss", "loss_itc", "loss_itm", "loss_lm", "lr", "images_per_second"}


def weights(output: Path, step: int) -> dict[str, bytes]:
    """Tensors of a checkpoint as bytes."""
    (file,) = output.glob(f"*/checkpoints/step_{step:08d}/model.safetensors")
    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def warm() -> Zygote:
    """A process that has imported what trainings need; they are forked from it."""
    server = warm_process()
    server.ask({"import": "tests.helpers.heavy_imports"})
    return server


def forked(warm: Zygote, cache: Path, folder: Path, *options: str, **env: str) -> Job:
    """A training in a process of its own; what runs together shares a folder, and writes to its `out`."""
    argv = command(*options, f"run.output_dir={folder / 'out'}", cfg=str(ROOT / "projects/blip2/stage1.yaml"))[2:]
    return start(warm, folder, "train", argv, environment(cache, **env))


@pytest.mark.usefixtures("curves")
def test_a_whole_run(train_here: Train, tmp_path: Path) -> None:
    done = train_here("run.max_iters=3", "run.valid_splits=[val]", f"run.output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "chance" in done.stdout
    assert "ITC + ITM" in done.stdout
    rows = [row for row in read_log(tmp_path / "out") if "split" not in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row.keys() >= KEYS for row in rows)
    (folder,) = (tmp_path / "out").iterdir()
    written = {path.name for path in folder.iterdir()}
    assert written >= {"config.yaml", "log.jsonl", "checkpoints", "results", "curves.png"}
    again = train_here("run.evaluate=true", f"run.output_dir={tmp_path / 'again'}", "model.load_pretrained=true",
                       f"model.pretrained={folder}/checkpoints/step_00000003", script="evaluate.py")
    assert again.returncode == 0, again.stderr
    first = next(row for row in read_log(tmp_path / "out") if row.get("split") == "test")
    second = next(row for row in read_log(tmp_path / "again") if row.get("split") == "test")
    assert {key: second[key] for key in second if key not in ("step", "epoch")} == {
        key: first[key] for key in first if key not in ("step", "epoch", "checkpoint_step")}


def test_a_killed_run_goes_on_bit_for_bit(train_here: Train, warm: Zygote, cache: Path, tmp_path: Path) -> None:
    options = ["run.max_iters=8", "run.save_every=2", "run.test_splits=[]"]
    assert train_here(*options, f"run.output_dir={tmp_path / 'whole'}").returncode == 0
    killed = tmp_path / "out"
    job = forked(warm, cache, tmp_path, *options)
    wait_for(killed, "*/checkpoints/step_00000004", [job], 120)
    os.kill(job.pid, signal.SIGKILL)
    assert finish([job]) == [-signal.SIGKILL]
    resumed = train_here(*options, "run.num_workers=1", f"run.output_dir={killed}", flags=("--resume", "auto"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stdout
    assert losses(killed) == losses(tmp_path / "whole")
    assert weights(killed, 8) == weights(tmp_path / "whole", 8)


def test_two_ranks_equal_one_on_the_same_global_batch(train_here: Train, warm: Zygote, cache: Path,
                                                      tmp_path: Path) -> None:
    """The first step's losses are equal but for rounding; later ones stay near.

    Adam makes whole steps of the rounding of gradients near zero. Under torchrun itself: tests/reliability.
    """
    options = ["run.max_iters=3", "run.test_splits=[]", "model.qformer_dropout=0"]
    one = train_here(*options, "run.batch_size_train=4", f"run.output_dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = [forked(warm, cache, tmp_path, *options, "run.batch_size_train=2", RANK=rank, LOCAL_RANK=rank, **group)
            for rank in "01"]
    assert finish(jobs, 240) == [0, 0], texts(jobs)
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "out")
    assert alone.keys() == together.keys() == {1, 2, 3}
    for step, values in alone.items():
        assert together[step] == pytest.approx(values, rel=5e-6 if step == 1 else 1e-3), step


def test_two_processes_with_slurms_variables(warm: Zygote, cache: Path, tmp_path: Path) -> None:
    shared = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
              "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7", "MASTER_PORT": str(free_port())}
    jobs = [forked(warm, cache, tmp_path, "run.max_iters=1", "run.test_splits=[]", **shared, SLURM_PROCID=rank,
                   SLURM_LOCALID=rank) for rank in "01"]
    assert finish(jobs, 240) == [0, 0], texts(jobs)
    assert "2 processes" in jobs[0].out.read_text()
    assert sorted(losses(tmp_path / "out")) == [1]


def test_dry_run_steps_once_and_keeps_nothing(train_here: Train, tmp_path: Path) -> None:
    done = train_here("run.max_iters=3", f"run.output_dir={tmp_path / 'out'}", flags=("--dry-run",))
    assert done.returncode == 0, done.stderr
    assert "ran one step" in done.stdout
    assert "loss_itc" in done.stdout
    assert not (tmp_path / "out").exists()


def test_print_config_names_the_layers(train_here: Train) -> None:
    done = train_here("run.max_iters=3", flags=("--print-config",))
    assert done.returncode == 0, done.stderr
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert lines["run.max_iters"].endswith("# --options")
    assert lines["run.init_lr"].endswith("# projects/blip2/stage1.yaml")
    assert lines["model.embed_dim"].endswith("# models/blip2/mini.yaml")
    assert lines["run.accum_grad_iters"].endswith("# default")
