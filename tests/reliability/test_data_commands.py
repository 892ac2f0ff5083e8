"""Data commands that are killed, asked to stop or run out of something: no worker and no half file is left."""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_lite.process.exits import code_of
from tests.reliability.harness import (
    LIMIT,
    STOPPING,
    Job,
    Zygote,
    environment,
    fill,
    finish,
    free_port,
    left_behind,
    processes_of,
    small_disk,
    start,
    texts,
    within,
)


@pytest.fixture(scope="module", autouse=True)
def imported(zygote: Zygote) -> None:
    """What commands with models take seconds to import."""
    for module in ("tests.helpers.heavy_imports", "lavis_lite.models.blip2.llm", "lavis_lite.zoo.loading"):
        zygote.ask({"import": module})


def data(zygote: Zygote, folder: Path, *argv: str, method: str | None = None, **env: str) -> Job:
    """A data command; what it writes goes to `folder/disk`."""
    (folder / "disk").mkdir(parents=True, exist_ok=True)
    env = environment(folder, LAVIS_LITE_CACHE=str(folder / "disk/cache"), **env)
    return start(zygote, folder, "data", argv, env, method=method)


def world(zygote: Zygote, folder: Path, method: str | None = None) -> Job:
    """The mini world, drawn by two processes or more."""
    return data(zygote, folder, "prepare", "mini_world_caption", method=method)


def shards(zygote: Zygote, folder: Path, method: str | None = None) -> Job:
    """Pictures packed into tars by two processes."""
    _write_pictures(folder)
    return data(zygote, folder, "shard", "--dataset", "mine", "--cfg-path", str(folder / "data.yaml"), "--out",
                str(folder / "disk/shards"), "--samples-per-shard", "5", "--workers", "2", method=method)


def index(zygote: Zygote, folder: Path, method: str | None = None) -> Job:
    """Tars of another program, read by two processes."""
    _write_tars(folder / "disk/tars")
    return data(zygote, folder, "index", str(folder / "disk/tars"), "--workers", "2", method=method)


def features(zygote: Zygote, folder: Path, method: str | None = None, per_file: int = 10, **env: str) -> Job:
    """The frozen vision encoder over pictures that two loader workers read."""
    _write_pictures(folder)
    return data(zygote, folder, "cache-features", "--cfg-path", str(folder / "data.yaml"), "--out",
                str(folder / "disk/features"), "--images-per-file", str(per_file), "--options", "model.arch=blip2",
                "run.max_iters=1", "run.num_workers=2", f"run.worker_start_method={method or 'fork'}", **env)


def capfilt(zygote: Zygote, folder: Path, method: str | None = None, **env: str) -> Job:
    """Captions of pictures, written by one model and ranked by another; it has no workers."""
    _write_pictures(folder)
    return data(zygote, folder, "capfilt", "--dataset", "mine", "--cfg-path", str(folder / "data.yaml"), "--out",
                str(folder / "disk/capfilt"), "--captioner", "blip2_opt", "--type", "mini", "--ranker", "blip2:mini",
                "--k", "2", "--batch-size", "5", "--images-per-part", "10", method=method, **env)


def _write_tars(folder: Path) -> None:
    """Forty tars of 64 samples, which take a while to read; all are names of one file."""
    if not folder.exists():
        folder.mkdir(parents=True)
        with tarfile.open(folder / "00.tar", "w") as tar:
            for number in range(64):
                for suffix, content in (("png", random.Random(number).randbytes(100_000)), ("txt", b"a caption")):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        for number in range(1, 40):
            (folder / f"{number:02}.tar").hardlink_to(folder / "00.tar")


def _write_pictures(folder: Path) -> None:
    """Sixty pictures that take a while to read, with captions, and a recipe of them."""
    picture = folder / "0.png"
    if not picture.exists():
        Image.frombytes("L", (1000, 1000), random.Random(1).randbytes(10**6)).save(picture)
        os.utime(picture, (0, 0))  # kept features record the time
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
COMMANDS: dict[str, tuple[Callable[..., Job], str]] = {
    "world": (world, "disk/cache/**/.*.partial/images/train/*"), "shards": (shards, "disk/shards/.tmp-*"),
    "index": (index, "disk/tars/.parts/*"), "features": (partial(features, per_file=60), "disk/features/mine")}
"""name -> how it is started, and the files that show that its workers are at work"""


def ways(*always: str) -> list[Any]:
    """(name, start method): these commands by default, all with --long.

    On Linux worlds and shards are always written by forked processes.
    """
    methods = [(name, method) for name in COMMANDS for method in ("fork", "spawn", "forkserver")
               if method == "fork" or name in ("index", "features")]
    return [pytest.param(*way, marks=() if way[0] in always and way[1] == "fork" else pytest.mark.long)
            for way in methods]


def started(name: str, zygote: Zygote, folder: Path, method: str | None = None) -> tuple[Job, list[int]]:
    """A command whose two workers are at work, and the process ids of all that it has started."""
    run, pattern = COMMANDS[name]
    job = run(zygote, folder, method)
    deadline = time.monotonic() + 30
    helpers = {"spawn": 1, "forkserver": 2}.get(method or "", 0)  # multiprocessing's own
    while not any(folder.glob(pattern)) or len(processes_of(job.pid)) < 3 + helpers:
        assert job.poll() is None and time.monotonic() < deadline, job.out.read_text() + texts([job])
        time.sleep(0.005)
    others = [pid for pid in processes_of(job.pid) if pid != job.pid]
    assert method in (None, "fork") or any(f"multiprocessing.{method}" in Path(f"/proc/{pid}/cmdline").read_text()
                                           for pid in others)
    return job, others


def newest(pids: Sequence[int]) -> int:
    """The process that was started last: a worker, and not one of multiprocessing's own servers."""
    return max(pids, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))


def gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether all processes end within a time."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(("name", "method"), ways("index"))
def test_a_killed_command_leaves_no_workers_and_can_be_repeated(name: str, method: str, zygote: Zygote,
                                                                tmp_path: Path) -> None:
    job, others = started(name, zygote, tmp_path, method)
    job.signal(signal.SIGKILL)
    assert gone(others, within(LIMIT))
    assert finish([job]) == [-signal.SIGKILL]
    again = COMMANDS[name][0](zygote, tmp_path, method)
    assert finish([again], 120) == [0], texts([again])
    assert left_behind(tmp_path, [job, again]) == []


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize(("name", "method"), ways("shards"))
def test_a_signal_ends_a_command_and_leaves_nothing(name: str, method: str, number: int, zygote: Zygote,
                                                    tmp_path: Path) -> None:
    job, _ = started(name, zygote, tmp_path, method)
    check_end(tmp_path, [job], lambda: job.signal_group(number), code_of(number), "stopped")


@pytest.mark.parametrize(("name", "method"), ways("world", "features"))
def test_a_worker_that_is_killed_is_told_of(name: str, method: str, zygote: Zygote, tmp_path: Path) -> None:
    job, others = started(name, zygote, tmp_path, method)
    check_end(tmp_path, [job], lambda: os.kill(newest(others), signal.SIGKILL), 2,
              "was killed, most likely because memory ran out")


def check_end(folder: Path, jobs: Sequence[Job], happen: Callable[[], object], code: int, words: str) -> None:
    """A command ends soon after something happens, as documented, and leaves nothing."""
    happen()
    since = time.time()
    assert finish(jobs) == [code] * len(jobs), texts(jobs)
    assert max(job.ended for job in jobs) - since < within(LIMIT)
    assert words in texts(jobs) and "Traceback" not in texts(jobs)
    assert left_behind(folder, jobs) == []


def started_as(ranks: int, run: Callable[..., Job], zygote: Zygote, folder: Path) -> list[Job]:
    """A command as one process, or as torchrun starts it."""
    if ranks == 1:
        return [run(zygote, folder)]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [run(zygote, folder, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(ranks)]


EVERY: dict[str, Callable[..., Job]] = {"world": world, "shards": shards, "index": index, "features": features,
                                        "capfilt": capfilt}


@pytest.mark.parametrize(("name", "ranks"), [("shards", 1), *(pytest.param(name, ranks, marks=pytest.mark.long)
                                                               for name in ("features", "capfilt")
                                                               for ranks in (1, 2))])
def test_an_unreadable_picture_ends_a_command(name: str, ranks: int, zygote: Zygote, tmp_path: Path) -> None:
    """The error of a worker or of the command itself, told once; another rank finishes its share."""
    _write_pictures(tmp_path)
    (tmp_path / "44.png").unlink()
    if name != "shards":  # they take pictures as they are
        (tmp_path / "44.png").write_bytes(b"no picture")
    jobs = started_as(ranks, EVERY[name], zygote, tmp_path)
    assert finish(jobs, 120) == [2, 0][:ranks], texts(jobs)
    assert texts(jobs).count("error:") == 1 and "44.png" in texts(jobs) and "Traceback" not in texts(jobs)
    assert left_behind(tmp_path, jobs) == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name != "shards" else ())
                                  for name in EVERY])
def test_a_full_disk_ends_a_command(name: str, zygote: Zygote, tmp_path: Path) -> None:
    """A real one, of which a part is taken."""
    with small_disk(tmp_path / "disk", {"index": 7000, "features": 200}.get(name, 1000)) as place:
        if name == "index":
            _write_tars(place / "tars")
            fill(place)
        job = EVERY[name](zygote, tmp_path)
        assert finish([job], 120) == [2], texts([job])
        said = texts([job])
        assert said.count("error:") == 1 and "full" in said and "Traceback" not in said
        assert left_behind(tmp_path, [job]) == []


# --- features and CapFilt: made in parts, of which each is whole or not there -----------------------------------------
PARTS = {"features": (features, "disk/features/**/*.safetensors"),
         "capfilt": (capfilt, "disk/capfilt/**/parts/*.jsonl")}


def with_a_part(name: str, zygote: Zygote, folder: Path, ranks: int = 1) -> list[Job]:
    """The processes of a command that has written its first part, with more to come."""
    run, pattern = PARTS[name]
    jobs = started_as(ranks, run, zygote, folder)
    deadline = time.monotonic() + 60
    while not any(folder.glob(pattern)):
        assert all(job.poll() is None for job in jobs) and time.monotonic() < deadline, texts(jobs)
        time.sleep(0.005)
    return jobs


def contents(name: str, folder: Path) -> dict[str, bytes]:
    """The parts by name."""
    return {path.name: path.read_bytes() for path in folder.glob(PARTS[name][1])}


def both(always: str, ranks: int) -> list[Any]:
    """(name, ranks): one by default, all with --long."""
    return [pytest.param(*way, marks=() if way == (always, ranks) else pytest.mark.long)
            for way in [(name, count) for name in PARTS for count in (1, 2)]]


@pytest.mark.parametrize(("name", "ranks"), both("features", 2))
def test_a_job_in_parts_that_is_killed_goes_on_and_ends_alike(name: str, ranks: int, zygote: Zygote,
                                                              tmp_path: Path) -> None:
    """Ranks do not wait for each other: the other one finishes its share, and the same command completes the rest."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        (folder / "tmp").mkdir(parents=True)
    *others, job = with_a_part(name, zygote, killed, ranks)
    workers = [pid for pid in processes_of(job.pid) if pid != job.pid]
    job.signal(signal.SIGKILL)
    assert gone(workers, within(LIMIT)) and finish([job, *others], 120) == [-signal.SIGKILL, *[0] * (ranks - 1)]
    assert all("the last process to finish" in other.out.read_text() for other in others)
    assert finish([PARTS[name][0](zygote, folder) for folder in (killed, whole)], 120) == [0, 0]
    assert len(contents(name, whole)) >= 6
    assert contents(name, killed) == contents(name, whole)


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize(("name", "ranks"), both("capfilt", 1))
def test_a_signal_ends_a_job_in_parts(name: str, ranks: int, number: int, zygote: Zygote, tmp_path: Path) -> None:
    jobs = with_a_part(name, zygote, tmp_path, ranks)
    check_end(tmp_path, jobs, lambda: [job.signal_group(number) for job in jobs], code_of(number), "stopped")
