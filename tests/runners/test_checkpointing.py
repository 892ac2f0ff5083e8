"""Checkpoints appear whole or not at all, and damage never passes."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from lavis_lite.errors import CheckpointError
from lavis_lite.io import atomic
from lavis_lite.models.base import freeze
from lavis_lite.runners import checkpointing
from lavis_lite.runners.checkpointing import CheckpointStore
from tests.helpers.toy import ToyModel, same

FILES = ["config.yaml", "manifest.json", "model.safetensors", "training_state.pt"]


def state(step, best=None):
    return {"step": step, "best": best, "optimizer": {"out.weight": {"exp_avg": torch.arange(3.0)}}}


def store(run_dir, keep=2):
    made = CheckpointStore(run_dir, keep)
    made.prepare()
    return made


@pytest.fixture()
def saved(tmp_path):
    """A run folder with checkpoints of steps 1 and 2."""
    made = store(tmp_path / "run")
    for step in (1, 2):
        made.save(step, ToyModel(seed=step), state(step), f"run:\n  seed: {step}\n")
    return made


def test_what_a_folder_holds(saved):
    folder = saved.path(2)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    manifest = checkpointing.read_manifest(folder)
    assert manifest.step == 2 and manifest.frozen == ("frozen.bias", "frozen.weight")
    assert checkpointing.verify(folder) == []
    tensors = checkpointing.load_file(folder / "model.safetensors")
    assert set(tensors) == {"hidden.0.weight", "hidden.0.bias", "out.weight", "out.bias", "scale", "tokens", "seen"}
    assert json.loads((saved.folder / "last.json").read_text()) == {"checkpoint": "step_00000002", "step": 2}


def test_weights_and_state_come_back(saved):
    model = ToyModel(seed=9)
    found = checkpointing.load(saved.path(1), model)
    assert found["step"] == 1 and torch.equal(found["optimizer"]["out.weight"]["exp_avg"], torch.arange(3.0))
    expected = ToyModel(seed=1)
    assert same(model.trainable_state(), expected.trainable_state())
    assert torch.equal(model.frozen.weight, ToyModel(seed=9).frozen.weight)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    class Tied(ToyModel):
        def __init__(self, seed=0):
            super().__init__(seed=seed)
            self.head = nn.Linear(6, 6, bias=False)
            self.head.weight = self.hidden[0].weight

    made = store(tmp_path)
    made.save(1, Tied(seed=3), state(1), "")
    assert checkpointing.read_manifest(made.path(1)).tied == {"head.weight": "hidden.0.weight"}
    model = Tied(seed=4)
    checkpointing.load_weights(made.path(1), model)
    assert torch.equal(model.head.weight, Tied(seed=3).head.weight) and model.head.weight is model.hidden[0].weight


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    made = store(tmp_path, keep=2)
    best = {"step": 1, "metric": 0.5, "split": "val"}
    for step in (1, 2, 3, 4):
        made.save(step, ToyModel(), state(step, best), "")
    assert [path.name for path in checkpointing.steps_of(tmp_path)] == ["step_00000004", "step_00000003",
                                                                        "step_00000001"]
    assert json.loads((made.folder / "best.json").read_text()) == {"checkpoint": "step_00000001", **best}
    made.save(2, ToyModel(), state(2, best), "")  # resumed from step 1: the future that was left is not counted
    assert [path.name[-1] for path in checkpointing.steps_of(tmp_path)] == ["4", "3", "2", "1"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(saved, name):
    path = saved.path(2) / name
    whole = path.read_bytes()
    rng = random.Random(name)
    for offset in sorted(rng.sample(range(len(whole)), min(200, len(whole)))):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << rng.randrange(8)]) + whole[offset + 1:])
        assert checkpointing.verify(saved.path(2)), f"byte {offset} of {name}"
    path.write_bytes(whole)
    assert checkpointing.verify(saved.path(2)) == []


@pytest.mark.parametrize("name", FILES)
def test_every_cut_is_found_and_the_last_good_one_taken(saved, name):
    path = saved.path(2) / name
    whole = path.read_bytes()
    for part in range(20):
        path.write_bytes(whole[:len(whole) * part // 20])
        said = []
        assert checkpointing.newest_good(saved.folder.parent.parent, said.append) == saved.path(1)
        assert len(said) == 1 and str(saved.path(2)) in said[0] and name in said[0]
        model = ToyModel(seed=5)
        before = model.trainable_state()["out.weight"].clone()
        with pytest.raises(CheckpointError, match="cannot be used"):
            checkpointing.load(saved.path(2), model)
        assert torch.equal(before, model.out.weight)
    path.unlink()
    assert "unreadable" in checkpointing.verify(saved.path(2))[0] or "missing" in checkpointing.verify(saved.path(2))[0]


def test_newest_good_looks_at_all_runs_and_takes_the_latest_saved(tmp_path, saved):
    assert checkpointing.newest_good(tmp_path / "nothing here") is None
    later = store(tmp_path / "other")
    later.save(1, ToyModel(), state(1), "")
    assert checkpointing.newest_good(tmp_path) == later.path(1)
    assert checkpointing.newest_good(tmp_path / "run") == saved.path(2)


def test_misfits_are_listed_with_their_shapes(saved):
    class Other(ToyModel):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 2)
            self.outer = nn.Linear(2, 2)
            del self.tokens

    with pytest.raises(CheckpointError) as fault:
        checkpointing.load_weights(saved.path(2), Other())
    text = str(fault.value)
    assert "outer.weight [2, 2]: missing in the checkpoint" in text
    assert "out.weight: [1, 6] in the checkpoint, [2, 6] in the model" in text
    assert "tokens [1, 2, 6]: not in the model" in text


def test_only_frozen_parameters_may_be_absent(saved):
    model = ToyModel()
    freeze(model.out)  # frozen since: its saved weights are still taken
    checkpointing.load_weights(saved.path(2), model)
    assert torch.equal(model.out.weight, ToyModel(seed=2).out.weight)
    model = ToyModel()
    del model.frozen.train  # thawed since: they are nowhere
    model.frozen.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"frozen.weight \[6, 6\]: missing"):
        checkpointing.load_weights(saved.path(2), model)


def test_a_later_format_is_refused(saved):
    path = saved.path(2) / "manifest.json"
    path.write_text(atomic.seal({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        checkpointing.read_manifest(saved.path(2))


def test_a_state_that_would_run_code_is_not_read(saved):
    class Payload:
        def __reduce__(self):
            return os.system, ("true",)

    folder = saved.path(2)
    torch.save({"step": Payload()}, folder / "training_state.pt")
    checkpointing._write_manifest(folder, ["model.safetensors"], atomic.read_sealed(folder / "manifest.json"))
    assert checkpointing.verify(folder) == []
    with pytest.raises(CheckpointError, match="not a training state"):
        checkpointing.load(folder, ToyModel())


class FullDisk:
    """Within it no file may grow beyond `size` bytes."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("size", [50, 500, 1500])
def test_a_full_disk_leaves_the_earlier_checkpoints_as_they_were(saved, size):
    before = {path: path.read_bytes() for path in saved.folder.rglob("*") if path.is_file()}
    assert max(len(content) for content in before.values()) > size
    with FullDisk(size), pytest.raises(CheckpointError, match="step 3 cannot.*no file may be larger than"):
        saved.save(3, ToyModel(), state(3), "x" * 2000)
    assert {path: path.read_bytes() for path in saved.folder.rglob("*") if path.is_file()} == before
    saved.save(3, ToyModel(), state(3), "")
    assert checkpointing.verify(saved.path(3)) == []


def test_a_place_that_cannot_be_written_to_is_an_error_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        store(tmp_path)


def test_strays_of_killed_processes_go_at_the_start(saved):
    (saved.folder / ".tmp-step_00000003-123").mkdir()
    (saved.folder / ".tmp-step_00000003-123/model.safetensors").write_text("half")
    (saved.folder / ".old-step_00000001").mkdir()
    (saved.folder / ".tmp-last.json-7").write_text("{")
    store(saved.folder.parent)
    assert sorted(path.name for path in saved.folder.iterdir()) == ["last.json", "step_00000001", "step_00000002"]


def test_the_same_step_again_replaces_the_damaged_one(saved):
    (saved.path(2) / "model.safetensors").write_bytes(b"")
    saved.save(2, ToyModel(seed=7), state(2), "")
    assert checkpointing.verify(saved.path(2)) == []
    model = ToyModel()
    checkpointing.load_weights(saved.path(2), model)
    assert torch.equal(model.out.weight, ToyModel(seed=7).out.weight)


def test_a_copied_run_folder_still_loads(saved, tmp_path):
    place = Path(shutil.copytree(saved.folder.parent, tmp_path / "elsewhere"))
    assert checkpointing.newest_good(place) == place / "checkpoints/step_00000002"
