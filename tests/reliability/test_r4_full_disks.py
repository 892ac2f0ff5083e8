"""R4: disks that are full, limited, read-only or gone: a training reaches its checkpoint, messages say what is so."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lavis_lite.cli.main import run_command
from lavis_lite.datasets.loading.policy import BadSampleLog
from lavis_lite.errors import CheckpointError, DataError
from lavis_lite.io import atomic, disk
from lavis_lite.process import exits
from lavis_lite.runners import checkpointing
from lavis_lite.tracking import tracker as jsonl
from lavis_lite.tracking.sinks import Sink
from lavis_lite.tracking.tracker import JsonlLog, Tracker
from tests.helpers.toy import Toy, ToyModel
from tests.reliability import harness
from tests.reliability.harness import fill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB; skipped where none may be mounted."""
    with harness.small_disk(tmp_path / "disk") as place:
        yield place


def row(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "loss": 1.0, "lr": 0.1, "images_per_second": 1.0, "note": "x" * 100}


def test_r4_a_full_disk_met_by_the_log_costs_no_line_and_no_run(small_disk: Path) -> None:
    said: list[str] = []
    log = JsonlLog(small_disk / "log.jsonl", said.append)
    log.open(0, 9)
    log.record(row(1))
    filler = fill(small_disk)
    for step in range(2, 60):
        log.record(row(step))
    assert len(said) == 1 and "the disk is full" in said[0] and str(log.path) in said[0]
    filler.unlink()
    log.record(row(60))
    log.close()
    assert [found["step"] for found in jsonl.read(log.path)] == list(range(1, 61))
    assert len(log.path.read_bytes().splitlines()) == 60 and said[1:] == [f"{log.path} is written again."]


def test_r4_a_training_on_a_full_disk_reaches_its_checkpoint_elsewhere(small_disk: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Lines(Sink):
        def log(self, text: str) -> None:
            said.append(text)

    class Full(Sink):
        def record(self, record: dict[str, Any]) -> None:
            fill(small_disk)
            raise OSError(errno.ENOSPC, "No space left on device", str(small_disk))

    tracker = Tracker([Lines(), Full(), JsonlLog(small_disk / "log.jsonl", said.append)])
    runner = Toy(tmp_path / "run", {"max_iters": 3}).build(tracker)
    runner.train()
    assert checkpointing.newest_good(tmp_path / "run") == runner.store.path(3)
    assert len([text for text in said if "Full cannot write any more" in text]) == 1
    assert len([text for text in said if "log.jsonl cannot be written" in text]) == 1


def test_r4_a_checkpoint_without_room_is_told_before_the_first_step(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that is asked for is exact: one byte less is refused, and a run that saves nothing asks for none."""
    def train(free: int, **run: Any) -> Any:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        runner = Toy(tmp_path / f"run{free}{len(run)}", {"max_iters": 1, **run}).build()
        runner.train()
        return runner

    saved = train(10**9)
    needed = checkpointing.checkpoint_bytes(saved.model, saved.run)
    assert needed > 100
    train(needed)
    with pytest.raises(CheckpointError) as caught:
        train(needed - 1)
    assert all(part in str(caught.value) for part in (
        f"{needed:,} bytes (", f"{needed - 1:,} bytes are free", str(tmp_path), "run.output_dir", "first checkpoint"))
    assert not (tmp_path / f"run{needed - 1}0" / "log.jsonl").exists(), "no step was made"
    train(0, save_last=False)


def test_r4_enospc_in_a_save_is_told_with_path_and_bytes(small_disk: Path) -> None:
    store = checkpointing.CheckpointStore(small_disk / "run")
    store.prepare()
    state = {"step": 1, "best": None}
    store.save(1, ToyModel(), state, "")
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    filler = fill(small_disk)
    with pytest.raises(CheckpointError) as caught:
        store.save(2, ToyModel(), {**state, "step": 2}, "")
    message = str(caught.value)
    assert "the disk is full" in message and str(store.folder) in message and "bytes" in message
    assert "inline_container" not in message and "step_00000001 is intact" in message
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before
    filler.unlink()
    store.save(2, ToyModel(), {**state, "step": 2}, "")
    assert checkpointing.verify(store.path(2)) == []


def test_r4_a_limit_on_file_sizes_is_no_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    error = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, before[1]))
    try:
        message = disk.cannot_write(tmp_path, error, 8_000_000, "the checkpoint of step 1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no file may be larger than 5,000,000 bytes" in message and "8,000,000 bytes" in message
    assert "ulimit" in message and "full" not in message


@pytest.mark.parametrize(("error", "words"), [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied"), "Check the permissions"),
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system. Check the permissions"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error."),
])
def test_r4_each_reason_has_its_words(tmp_path: Path, error: Exception, words: str) -> None:
    assert words in disk.cannot_write(tmp_path / "x", error)
    assert words in disk.cannot_write(tmp_path / "x", wrapped(error))


def wrapped(error: Exception) -> Exception:
    try:
        raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as outer:
        return outer


def test_r4_a_folder_that_was_removed(tmp_path: Path) -> None:
    store = checkpointing.CheckpointStore(tmp_path / "run")
    store.prepare()
    store.save(1, ToyModel(), {"step": 1, "best": None}, "")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is gone") as caught:
        store.save(2, ToyModel(), {"step": 2, "best": None}, "")
    assert "as it was" not in str(caught.value)


def test_r4_a_log_that_is_deleted_is_begun_again(tmp_path: Path) -> None:
    said: list[str] = []
    log = JsonlLog(tmp_path / "run" / "log.jsonl", said.append)
    log.open(0, 9)
    log.record(row(1))
    log.path.unlink()
    log.record(row(2))
    shutil.rmtree(tmp_path / "run")
    log.record(row(3))
    log.close()
    assert [found["step"] for found in jsonl.read(log.path)] == [3]
    assert len(said) == 2 and all("was removed or replaced" in text for text in said)


def test_r4_bad_samples_are_counted_where_they_cannot_be_listed(tmp_path: Path) -> None:
    log = BadSampleLog(tmp_path / "gone" / "bad.jsonl", 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log.add([{"file": "x", "reason": "y"}], 2)  # type: ignore[list-item]
    assert log.bad == 1 and log.read == 2
    assert len(caught) == 1 and "is gone" in str(caught[0].message)


@pytest.mark.parametrize("evaluate", [False, True])
def test_r4_results_that_cannot_be_written(tmp_path: Path, evaluate: bool) -> None:
    said: list[str] = []

    class Lines(Sink):
        def log(self, text: str) -> None:
            said.append(text)

    (tmp_path / "results").write_text("in the way of the folder")
    runner = Toy(tmp_path, {"max_iters": 2, "valid_splits": ["val"], "iters_per_inner_epoch": 1,
                            "evaluate": evaluate}).build(Tracker([Lines()]))
    if evaluate:
        with pytest.raises(DataError, match="the results of val cannot be written"):
            runner.evaluate()
    else:
        runner.train()
        assert runner.store.path(2).exists()
        assert any("the results of val cannot be written" in text for text in said)
    assert any("agg_metrics" in text for text in said)


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "rows.json cannot be written: the disk is full"),
                                               (errno.EROFS, "rows.json cannot be written: Read-only file system")])
def test_r4_a_data_command_names_the_file_that_has_no_room(number: int, words: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """The system's error knows no name. All data commands on a real full disk: test_data_commands.py."""
    def command(argv: Any) -> int:
        with atomic.replaced(tmp_path / "rows.json") as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lavis_lite.cli.data.main", command)
    assert run_command("data", []) == exits.USER_ERROR
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
