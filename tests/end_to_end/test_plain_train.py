"""examples/plain_train.py: stage 1 as one script has the losses and weights of the runner, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import ROOT, SMALL, Train, losses

EXAMPLE = ROOT / "examples" / "plain_train.py"
OPTIONS = ["datasets.mini_world_caption.prepare_args={train: 8, val: 2, test: 2, ood: 2, seed: 3}", "run.max_iters=7",
           "run.batch_size_train=8", "run.test_splits=[]", "run.save_every=7"]
"""an epoch of 8 x 5 captions has 5 steps, so the run goes through one and two steps more"""


def test_the_losses_of_the_script_are_those_of_the_runner(train_here: Train, tmp_path: Path) -> None:
    done = train_here(*OPTIONS, f"run.output_dir={tmp_path}/runner")
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("plain_train", EXAMPLE)
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    found = plain.train([*SMALL, *OPTIONS], tmp_path / "plain")
    by_runner = losses(tmp_path / "runner")
    assert [tuple(row.values()) for row in found] == [by_runner[step] for step in range(1, 8)]
    [checkpoint] = tmp_path.glob("runner/*/checkpoints/step_00000007/model.safetensors")
    theirs, ours = load_file(checkpoint), load_file(tmp_path / "plain" / "model.safetensors")
    assert set(ours) <= set(theirs) and len(ours) > 50
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_it_is_short_and_has_no_runner() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 150 and "lavis_lite.runners" not in text and "lavis_lite.tasks" not in text
