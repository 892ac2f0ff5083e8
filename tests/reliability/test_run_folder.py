"""`--resume auto` over what killed, damaged, foreign and running runs leave in an output folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from lavis_lite import engine
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import CheckpointError
from lavis_lite.io.atomic import seal
from lavis_lite.runs import folder as run_folder
from lavis_lite.runs.folder import RunBusyError, RunLock
from tests.helpers.toy import Toy
from tests.reliability.faulty import write_config
from tests.reliability.harness import Zygote, environment, finish, start, texts


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with two finished runs."""
    for name in ("one", "two"):
        run_dir = tmp_path / "out" / name
        Toy(run_dir, {"max_iters": 4, "save_every": 2}).build().train()
        (run_dir / "config.yaml").write_text("run: {}\n")
    return tmp_path / "out"


def find(out: Path, start_over: bool = False) -> Path | None:
    return engine.find_checkpoint(RunConfig(output_dir=str(out)), "auto", start_over)


def damage(out: Path) -> None:
    """Flip a bit in the weights of every checkpoint."""
    for path in out.glob("*/checkpoints/*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def hold(run_dir: Path, told: Connection) -> None:
    """Train in a run folder, as it looks from outside."""
    lock = RunLock(run_dir).acquire()
    told.send("held")
    time.sleep(600)
    lock.release()


def holder(run_dir: Path) -> ForkProcess:
    """Another process that trains in a run folder."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(run_dir, there), daemon=True)
    process.start()
    assert here.poll(30) and here.recv() == "held"
    return process


# --- damaged checkpoints --------------------------------------------------------------------------------------------
def test_damaged_checkpoints_only_are_no_reason_to_begin_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(out)
    with pytest.raises(CheckpointError, match=r"is damaged \(4, listed above\).*--start-over"):
        find(out)
    assert capsys.readouterr().out.count("skipping the damaged checkpoint") == 4
    assert find(out, start_over=True) is None


def test_nothing_at_all_begins_afresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find(tmp_path / "out") is None
    assert "starting afresh" in capsys.readouterr().out


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b'{"format": "one", "files": 3, "saved_at": {}}',
    b'{"model_type": "blip-2", "files": {"../../x": {}}}',
])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_foreign_manifest_does_not_block_the_others(out: Path, content: bytes, sealed: bool,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    foreign = out / "other" / "checkpoints" / "step_00000099"
    foreign.mkdir(parents=True)
    if sealed and content.startswith(b'{"'):
        content = seal(json.loads(content)).encode()
    (foreign / "manifest.json").write_bytes(content)
    assert find(out) == out / "two/checkpoints/step_00000004"
    assert str(foreign) in capsys.readouterr().out


def test_start_over_is_an_option_of_the_command(zygote: Zygote, tmp_path: Path) -> None:
    argv = ["--cfg-path", str(write_config(tmp_path, 2)), "--resume", "auto"]
    env = environment(tmp_path)
    assert finish([start(zygote, tmp_path, "train", argv, env)]) == [0]
    damage(tmp_path / "out")
    refused = start(zygote, tmp_path, "train", argv, env)
    assert finish([refused]) == [2] and "--start-over" in texts([refused])
    assert finish([start(zygote, tmp_path, "train", [*argv, "--start-over"], env)]) == [0]


# --- who may write --------------------------------------------------------------------------------------------------
def test_a_second_start_learns_who_trains_there(out: Path) -> None:
    other = holder(out / "two")
    try:
        with pytest.raises(RunBusyError, match=rf"training in .*two \(process {other.pid} on .*, since 20"):
            RunLock(out / "two").acquire()
        RunLock(out / "one").acquire().release()
    finally:
        other.kill()
        other.join()


def test_the_lock_of_a_dead_process_does_not_block(out: Path) -> None:
    other = holder(out / "two")
    other.kill()
    other.join()
    assert (out / "two" / run_folder.LOCK).exists()
    lock = RunLock(out / "two").acquire()
    assert json.loads((out / "two" / run_folder.HOLDER).read_text())["pid"] == os.getpid()
    lock.release()
    assert not list((out / "two").glob(".lock*"))


def test_a_command_beside_a_running_one_is_refused(zygote: Zygote, tmp_path: Path) -> None:
    argv = ["--cfg-path", str(write_config(tmp_path, 4000)), "--resume", "auto"]
    env = {**environment(tmp_path), "STEP_SECONDS": "0.05"}
    first = start(zygote, tmp_path, "train", argv, env)
    while not list(tmp_path.glob("out/*/checkpoints/step_*")):
        assert first.poll() is None, texts([first])
    (tmp_path / "b").mkdir()
    second = start(zygote, tmp_path / "b", "train", argv, env)
    assert finish([second]) == [2]
    assert f"another process is training in {tmp_path / 'out'}" in texts([second])
    assert f"process {first.pid} on" in texts([second])
    first.signal(signal.SIGTERM)
    assert finish([first]) == [143]


def test_a_checkpoint_that_its_run_has_removed_meanwhile(out: Path) -> None:
    import contextlib

    gone = out / "two/checkpoints/step_00000002"
    shutil.rmtree(gone)
    with contextlib.ExitStack() as held, pytest.raises(CheckpointError, match="was removed by its run"):
        engine.lock_run_folder(out / "two", gone, held)
    assert not run_folder.is_busy(out / "two")


# --- what killed runs leave -----------------------------------------------------------------------------------------
def test_strays_of_killed_runs_are_removed_and_nothing_else(out: Path) -> None:
    stray, busy = out / "one/checkpoints/.tmp-step_00000006-123", out / "two/checkpoints/.tmp-step_00000006-124"
    foreign = out / "not_a_run/checkpoints/.tmp-step_00000001-1"
    for folder in (stray, busy, foreign):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    other_file = out / "one/checkpoints/.tmp-notes"
    other_file.write_text("not ours")
    scores = out / "one/results/.tmp-test_step6.json-123"
    scores.parent.mkdir(exist_ok=True)
    scores.write_text("{")
    other = holder(out / "two")
    try:
        run_folder.remove_leftovers(out)
        assert not stray.exists() and not scores.exists() and busy.exists() and foreign.exists() and other_file.exists()
    finally:
        other.kill()
        other.join()
    run_folder.remove_leftovers(out)
    assert not busy.exists() and find(out) == out / "two/checkpoints/step_00000004"


def test_the_lock_of_a_killed_run_is_removed_by_the_next_start(out: Path) -> None:
    """Also of one that was killed before its first save, whose folder nobody goes on with."""
    other = holder(out / "one")
    run_folder.remove_leftovers(out)
    assert (out / "one" / run_folder.HOLDER).exists()  # it runs
    other.kill()
    other.join()
    run_folder.remove_leftovers(out)
    assert not list(out.glob("*/.lock*")) and (out / "one/checkpoints/step_00000004").exists()


def test_a_kill_in_the_first_save_leaves_nothing_after_the_next_start(zygote: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path, 2)
    argv = ["--cfg-path", str(config), "--resume", "auto"]
    killed = environment(tmp_path, FAULT="save:kill", FAULT_AFTER=str(config))
    assert finish([start(zygote, tmp_path, "train", argv, killed)]) == [-signal.SIGKILL]
    assert list(tmp_path.glob("out/*/checkpoints/.tmp-step_*"))
    assert finish([start(zygote, tmp_path, "train", argv, environment(tmp_path))]) == [0]
    assert not list(tmp_path.glob("out/*/checkpoints/.tmp-*")) and not list(tmp_path.glob("out/*/.lock*.json"))
