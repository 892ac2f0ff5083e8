"""Packaged checkpoints: fp16 copies of a run's weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_lite.errors import CheckpointError
from lavis_lite.mini.pack_checkpoint import main, pack


def test_floating_point_is_halved_and_the_rest_stays(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    (tmp_path / "step").mkdir()
    save_file({"a": weight, "count": torch.tensor([7])}, tmp_path / "step" / "model.safetensors")
    main([os.fspath(tmp_path / "step"), os.fspath(tmp_path / "packed.safetensors")])
    found = load_file(tmp_path / "packed.safetensors")
    assert torch.equal(found["a"], weight.half()) and torch.equal(found["count"], torch.tensor([7]))
    assert not list(tmp_path.glob("*.partial"))


def test_what_fp16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"fine": torch.ones(1), "huge": torch.tensor([1e6])}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="huge"):
        pack(tmp_path / "model.safetensors", tmp_path / "packed.safetensors")
    assert not (tmp_path / "packed.safetensors").exists()
