"""Data commands that are killed, asked to stop or run out of something: no worker and no half file is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite.process.exits import code_of
from tests.reliability.harness import (
    LIMIT,
    STOPPING,
    Job,
    Zygote,
    environment,
    finish,
    left_behind,
    processes_of,
    start,
    texts,
    within,
)


def world(zygote: Zygote, folder: Path) -> Job:
    """The mini world, drawn by two processes or more."""
    return start(zygote, folder, "data", ["prepare", "mini_world_caption"], environment(folder))


def shards(zygote: Zygote, folder: Path) -> Job:
    """Pictures packed into tars by two processes."""
    _write_pictures(folder)
    argv = ["shard", "--dataset", "mine", "--cfg-path", str(folder / "data.yaml"), "--out", str(folder / "shards"),
            "--samples-per-shard", "5", "--workers", "2"]
    return start(zygote, folder, "data", argv, environment(folder))


def features(zygote: Zygote, folder: Path) -> Job:
    """The frozen vision encoder over pictures."""
    _write_pictures(folder)
    argv = ["cache-features", "--cfg-path", str(folder / "data.yaml"), "--out", str(folder / "features"),
            "--images-per-file", "5", "--options", "model.arch=blip2", "run.max_iters=1"]
    return start(zygote, folder, "data", argv, environment(folder))


def capfilt(zygote: Zygote, folder: Path) -> Job:
    """Captions of pictures, written by one model and ranked by another."""
    _write_pictures(folder)
    argv = ["capfilt", "--dataset", "mine", "--cfg-path", str(folder / "data.yaml"), "--out", str(folder / "capfilt"),
            "--captioner", "blip2_opt", "--type", "mini", "--ranker", "blip2:mini", "--k", "2", "--batch-size", "5",
            "--images-per-part", "5"]
    return start(zygote, folder, "data", argv, environment(folder))


def _write_pictures(folder: Path) -> None:
    """Sixty pictures that take a while to read, with captions, and a recipe of them."""
    picture = folder / "0.png"
    if not picture.exists():
        Image.frombytes("L", (1000, 1000), random.Random(1).randbytes(10**6)).save(picture)
        rows = "".join(f"{number}.png,a caption\n" for number in range(60))
        for number in range(1, 60):
            (folder / f"{number}.png").hardlink_to(picture)
        (folder / "rows.csv").write_text(f"image,caption\n{rows}")
        (folder / "data.yaml").write_text(RECIPE.format(folder=folder))


RECIPE = """
imports: [tests.reliability.faulty]
model: {{arch: faulty}}
run: {{train_splits: [train], batch_size_train: 4}}
datasets:
  mine:
    builder: custom
    build_info: {{annotations: {{train: {{storage: {folder}/rows.csv}}}}}}
    vis_processor: {{train: {{name: blip_image_eval, image_size: 64}}}}
"""
COMMANDS = {"world": world, "shards": shards}


def started(name: str, zygote: Zygote, folder: Path) -> tuple[Job, list[int]]:
    """A command whose two workers are at work, and their process ids."""
    job = COMMANDS[name](zygote, folder)
    deadline = time.monotonic() + 30
    half = ["shards/.tmp-*", "cache/**/.*.partial/images/train/*"]
    while not any(True for pattern in half for _ in folder.glob(pattern)) or len(processes_of(job.pid)) < 3:
        assert job.poll() is None and time.monotonic() < deadline, job.out.read_text() + texts([job])
        time.sleep(0.005)
    return job, [pid for pid in processes_of(job.pid) if pid != job.pid]


def gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether all processes end within a time."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_writer_leaves_no_workers(name: str, zygote: Zygote, tmp_path: Path) -> None:
    job, workers = started(name, zygote, tmp_path)
    job.signal(signal.SIGKILL)
    assert gone(workers, within(LIMIT))
    assert finish([job]) == [-signal.SIGKILL]


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_writer_and_leaves_nothing(name: str, number: int, zygote: Zygote, tmp_path: Path) -> None:
    job, _ = started(name, zygote, tmp_path)
    job.signal_group(number)
    asked = time.time()
    assert finish([job]) == [code_of(number)]
    assert job.ended - asked < within(LIMIT)
    assert "stopped" in texts([job]) and "Traceback" not in texts([job])
    assert left_behind(tmp_path, [job]) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_worker_that_is_killed_is_told_of(name: str, zygote: Zygote, tmp_path: Path) -> None:
    job, workers = started(name, zygote, tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    killed = time.time()
    assert finish([job]) == [2]
    assert job.ended - killed < within(LIMIT)
    assert "was killed, most likely because memory ran out" in texts([job])
    assert "Traceback" not in texts([job])
    assert left_behind(tmp_path, [job]) == []


# --- features and CapFilt: made in parts, of which each is whole or not there -----------------------------------------
PARTS = {"features": (features, "features/**/*.safetensors"), "capfilt": (capfilt, "capfilt/**/parts/*.jsonl")}


def with_a_part(name: str, zygote: Zygote, folder: Path) -> Job:
    """A command that has written its first part, with more to come."""
    run, pattern = PARTS[name]
    job = run(zygote, folder)
    deadline = time.monotonic() + 60
    while not any(folder.glob(pattern)):
        assert job.poll() is None and time.monotonic() < deadline, job.out.read_text() + texts([job])
        time.sleep(0.005)
    return job


def contents(name: str, folder: Path) -> dict[str, bytes]:
    """The parts by name."""
    return {path.name: path.read_bytes() for path in folder.glob(PARTS[name][1])}


@pytest.mark.parametrize("name", ["features", pytest.param("capfilt", marks=pytest.mark.long)])
def test_a_job_in_parts_that_is_killed_goes_on_and_ends_alike(name: str, zygote: Zygote, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        (folder / "tmp").mkdir(parents=True)
    job = with_a_part(name, zygote, killed)
    workers = [pid for pid in processes_of(job.pid) if pid != job.pid]
    job.signal(signal.SIGKILL)
    assert gone(workers, within(LIMIT)) and finish([job]) == [-signal.SIGKILL]
    assert finish([PARTS[name][0](zygote, folder) for folder in (killed, whole)], 120) == [0, 0]
    assert len(contents(name, whole)) >= 12
    assert contents(name, killed) == contents(name, whole)


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("name", ["capfilt", pytest.param("features", marks=pytest.mark.long)])
def test_a_signal_ends_a_job_in_parts(name: str, number: int, zygote: Zygote, tmp_path: Path) -> None:
    job = with_a_part(name, zygote, tmp_path)
    job.signal_group(number)
    asked = time.time()
    assert finish([job]) == [code_of(number)]
    assert job.ended - asked < within(LIMIT)
    assert "stopped" in texts([job]) and "Traceback" not in texts([job])
    assert left_behind(tmp_path, [job]) == []

