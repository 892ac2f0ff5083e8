"""Joining a group chooses this process's GPU."""

from __future__ import annotations

import pytest
import torch

from lavis_lite import distributed


def test_a_rank_takes_its_own_gpu_before_any_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's collectives of objects and its barriers use the current GPU, which is 0 in every process at first."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    distributed.init(torch.device("cpu"))
    assert chosen == []
    distributed.init(torch.device("cuda", 3))
    assert chosen == [torch.device("cuda", 3)]
