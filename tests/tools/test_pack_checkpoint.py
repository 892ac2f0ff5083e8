"""Packaged checkpoints: fp16 copies of a run's weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_lite.checkpoints.convert import find, metadata_of
from lavis_lite.errors import CheckpointError
from tools.pack_checkpoint import main, pack


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


@pytest.mark.parametrize(("name", "model"), [
    ("stage1", ("blip2", "mini")), ("stage2_opt", ("blip2_opt", "mini")), ("stage2_t5", ("blip2_t5", "mini")),
    ("instruct_opt", ("blip2_opt", "mini_instruct")), ("instruct_t5", ("blip2_t5_instruct", "mini"))])
def test_packaged_checkpoints_say_which_model_they_are_of(name: str, model: tuple[str, str]) -> None:
    origin = metadata_of(find(f"mini/{name}"))
    assert (origin.model["arch"], origin.model["model_type"]) == model and origin.model["pretrained"] is None
    assert origin == metadata_of(Path(), *model)


def test_a_packed_file_names_the_type_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "step" / "model.safetensors")
    (tmp_path / "step" / "config.yaml").write_text("model: {arch: blip2_opt, model_type: mini, max_txt_len: 9}\n")
    pack(tmp_path / "step", tmp_path / "packed.safetensors")
    assert metadata_of(tmp_path / "packed.safetensors") == metadata_of(Path(), "blip2_opt", "mini")
