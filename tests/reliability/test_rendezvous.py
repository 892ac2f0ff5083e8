"""How ranks meet: what is said while they wait, and what happens if one never comes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lavis_lite.distributed import rendezvous
from lavis_lite.distributed.rendezvous import Rendezvous
from lavis_lite.errors import DistributedError
from lavis_lite.process.launch import Launch, launch_from_environment
from tests.reliability.faulty import write_config
from tests.reliability.harness import (
    LIMIT,
    STOPPING,
    Case,
    Zygote,
    environment,
    finish,
    free_port,
    left_behind,
    start,
    texts,
    within,
)

ALLOCATION = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
              "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NAME": "lavis_lite"}
STEP = {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}


# --- who am I -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("env", [
    ALLOCATION,  # the batch script
    {**ALLOCATION, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "4"},  # the same, as newer versions say it
    {**ALLOCATION, "SLURM_STEP_ID": "4294967290"},  # the interactive step of salloc
    {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},  # the shell of salloc
    {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "bash"},
    {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "interactive"},
])
def test_inside_an_allocation_without_srun_one_process_runs_alone(env: dict[str, str]) -> None:
    launch = launch_from_environment(env)
    assert (launch.rank, launch.world_size) == (0, 1)
    assert "srun did not start this process, so it runs alone" in launch.note


def test_a_step_of_one_task_runs_alone_and_says_nothing() -> None:
    assert launch_from_environment({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == Launch()


@pytest.mark.parametrize("name", ["python", "bash"])
def test_a_task_of_srun_is_one_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    launch = launch_from_environment({**STEP, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": name})
    assert (launch.rank, launch.world_size, launch.local_rank, launch.note) == (3, 4, 1, "")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("localhost", "20077")


@pytest.mark.parametrize("env", [{"WORLD_SIZE": "two"}, {"SLURM_NTASKS": "4(x2)", "SLURM_PROCID": "0"},
                                 {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}])
def test_variables_that_are_no_numbers(env: dict[str, str]) -> None:
    with pytest.raises(DistributedError, match="is not a number"):
        launch_from_environment(env)


# --- meeting --------------------------------------------------------------------------------------------------------
def together(work: list[Callable[[], Any]]) -> list[Any]:
    """Results of functions that run at the same time, errors as values."""
    found: list[Any] = [None] * len(work)

    def call(place: int) -> None:
        try:
            found[place] = work[place]()
        except DistributedError as fault:
            found[place] = fault

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port of this machine, in the variables that name it."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return port


def test_all_ranks_get_the_same_store(address: int) -> None:
    stores = together([lambda rank=rank: Rendezvous(rank, 3, 1).meet() for rank in range(3)])  # type: ignore[misc]
    stores[1].set("key", "value")
    assert [store.get("key") for store in stores] == [b"value"] * 3


def test_attempts_at_one_store_do_not_read_each_other(address: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun lends outlives the attempts; nothing tells them apart but what they agree on themselves."""
    lent = dist.TCPStore("127.0.0.1", address, None, True, timedelta(seconds=30), wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for attempt in range(3):
        stores = together([lambda rank=rank: Rendezvous(rank, 2, 1).meet() for rank in range(2)])  # type: ignore[misc]
        assert not stores[0].check(["left"]) and not stores[1].check(["left"])
        stores[attempt % 2].set("left", str(attempt))
    assert lent.num_keys() > 3


def test_a_rank_that_never_comes_is_named(address: int, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MESSAGE_AFTER", 0.2)
    leader, follower = together([Rendezvous(0, 3, 0.01).meet, Rendezvous(1, 3, 0.01).meet])
    assert "rank 0 of 3 waited 0.01 minutes for rank 2 at 127.0.0.1" in str(leader)
    assert "rank 1 of 3 waited" in str(follower)


def test_waiting_is_said_with_the_address(address: int, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Within five seconds, whoever is late."""
    assert rendezvous.MESSAGE_AFTER <= 5
    monkeypatch.setattr(rendezvous, "MESSAGE_AFTER", 0.2)
    with pytest.raises(DistributedError, match="for rank 0 at"):
        Rendezvous(1, 2, 0.01).meet()
    assert f"rank 1 of 2 waits for rank 0 at 127.0.0.1:{address}" in capsys.readouterr().err


def test_a_port_in_use_is_told_of(address: int) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", address))
        taken.listen()
        with pytest.raises(DistributedError, match="Set MASTER_PORT to a free one"):
            Rendezvous(0, 2, 0.1).meet()


# --- whole commands ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("command", ["train", pytest.param("evaluate", marks=pytest.mark.long)])
def test_a_signal_before_the_rendezvous_ends_at_once(command: str, number: int, zygote: Zygote, tmp_path: Path) -> None:
    (first, second) = Case(ranks=2, command=command).start(zygote, tmp_path)
    second.signal(signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while "waits for rank 1 at 127.0.0.1" not in first.err.read_text():
        assert time.monotonic() < deadline and first.poll() is None, first.err.read_text()
        time.sleep(0.05)
    first.signal(number)
    asked = time.time()
    assert finish([first]) == [128 + number]
    assert first.ended - asked < within(LIMIT)
    second.kill()
    finish([second])
    assert left_behind(tmp_path, [first]) == []


def test_a_batch_script_without_srun_trains_alone(zygote: Zygote, tmp_path: Path) -> None:
    argv = ["--cfg-path", str(write_config(tmp_path, 4)), "--options", "run.num_workers=0"]
    job = start(zygote, tmp_path, "train", argv, {**environment(tmp_path), **ALLOCATION})
    assert finish([job]) == [0], texts([job])
    assert "note: SLURM_NTASKS is 4, but srun did not start this process" in job.out.read_text()


def test_a_dry_run_joins_no_group(zygote: Zygote, tmp_path: Path) -> None:
    argv = ["--cfg-path", str(write_config(tmp_path, 4)), "--dry-run", "--options", "run.num_workers=0"]
    job = start(zygote, tmp_path, "train", argv, {**environment(tmp_path), **STEP})
    assert finish([job]) == [0], texts([job])
    assert "ran one step" in job.out.read_text() and "waits" not in texts([job])


def test_a_meeting_point_that_goes_again_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 opens it; if it is killed before all ranks have met, the others' next question has no answer."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))

    class Gone:
        def set(self, *_: object) -> None:
            raise dist.DistNetworkError("Failed to recv, got 0 bytes")

    monkeypatch.setattr(Rendezvous, "_store", lambda self: Gone())
    with pytest.raises(DistributedError, match="rank 1 of 2 lost the meeting point at 127.0.0.1:.* has ended"):
        Rendezvous(1, 2, 1.0).meet()
