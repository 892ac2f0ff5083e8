"""A run that fails on several ranks reports the cause once, whatever signals arrive meanwhile."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import pytest
import torch

from lavis_lite.cli.main import run_command
from lavis_lite.distributed import process_group
from lavis_lite.process import exits
from lavis_lite.process.launch import Launch


class Store:
    """A store in which another rank has failed before; torchrun's agent terminates this one while it asks."""

    def set_timeout(self, wanted: timedelta) -> None:
        """For the class' interface."""

    def add(self, key: str, count: int) -> int:
        """The number of failures."""
        os.kill(os.getpid(), signal.SIGTERM)
        return 2


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is rank 1 of 2 after a failure of rank 0."""
    monkeypatch.setattr(process_group, "init", lambda *_: Launch(rank=1, world_size=2))
    monkeypatch.setattr(process_group._State, "store", Store())
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)


def fail() -> None:
    """As a collective does after a peer has left."""
    raise RuntimeError("Connection closed by peer [127.0.0.1]:1")


def fail_and_be_stopped() -> None:
    """The signal comes on the way to the group's handler."""
    try:
        fail()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("body", [fail, fail_and_be_stopped])
def test_a_rank_that_is_terminated_while_it_fails_adds_no_message(body: Any, second_rank: None,
                                                                  monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Any) -> int:
        with process_group.group(torch.device("cpu")):
            body()
        return 0

    monkeypatch.setattr("lavis_lite.cli.train.main", command)
    assert run_command("train", []) == exits.USER_ERROR
    assert capsys.readouterr().err == ""
