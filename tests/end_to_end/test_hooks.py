"""Hooks and optimizers from the command line: a run with them, and the evaluation of its averaged weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lavis_lite import load_model
from lavis_lite.cli.main import run_command
from lavis_lite.errors import CheckpointError, ConfigError
from tests.end_to_end.conftest import ROOT, Train, environment, read_log

HOOKS = ["run.hooks.ema.decay=0.5", "run.hooks.throughput.every=2",
         "run.hooks.sample_predictions={samples: 2, every: 3}",
         "run.tensorboard=true", "run.max_iters=3", "run.save_every=3", "run.valid_splits=[]", "run.test_splits=[test]",
         "run.k_test=0"]


def test_averaged_weights_are_saved_evaluated_and_loaded(train_here: Train, tmp_path: Path) -> None:
    done = train_here(*HOOKS, f"run.output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*/checkpoints/step_00000003")
    trained = folder.parents[1]
    check_logs(trained)
    average = load_file(folder / "ema.safetensors")["vision_proj.weight"]
    assert not torch.equal(average, load_file(folder / "model.safetensors")["vision_proj.weight"])
    words = ["--run", str(trained), "--options", "run.weights=ema", "run.tensorboard=false"]
    assert run_command("evaluate", words) == 0
    (result,) = trained.glob("evaluations/*/results/test_step3.json")
    content = json.loads(result.read_text())
    assert "ema.safetensors (step 3" in content["weights"]
    trained_scores = next(row for row in read_log(trained.parent) if row.get("split") == "test")
    assert content["metrics"]["loss"] != trained_scores["loss"]
    model = load_model(run=trained, weights="ema")
    assert torch.equal(model.state_dict()["vision_proj.weight"], average)
    by_path = load_model("blip2", "mini", checkpoint=folder / "ema.safetensors")
    assert torch.equal(by_path.state_dict()["vision_proj.weight"], average)
    with pytest.raises(CheckpointError, match="has no weights 'emma' besides the trained ones; did you mean 'ema'"):
        load_model(run=trained, weights="emma")
    with pytest.raises(ConfigError, match="weights='ema' chooses weights of a run"):
        load_model("blip2", "mini", weights="ema")


def check_logs(trained: Path) -> None:
    """What the hooks of a run left in its log and in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_log(trained.parent)
    assert [row["step"] for row in rows if row.get("hook") == "throughput"] == [2]
    assert [row["step"] for row in rows if row.get("text") == "sample_predictions"] == [0, 3]
    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert "throughput/samples_per_second" in tags["scalars"] and "train/loss" in tags["scalars"]
    assert tags["images"] == ["sample_predictions/0", "sample_predictions/1"]
    assert "sample_predictions/text_summary" in tags["tensors"]


def test_mistakes_are_answered_before_anything_is_made(train_here: Train, tmp_path: Path) -> None:
    done = train_here("run.hooks.emma.decay=0.9", "run.hooks.ema.dekay=1", "run.optimizer=adamv",
                      "run.optimizer_args.x=1", f"run.output_dir={tmp_path / 'out'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("run.hooks.emma: unknown hook 'emma': did you mean 'ema'",
                 "run.hooks.ema.dekay: EMA has no such parameter", "run.optimizer: unknown optimizer 'adamv'"):
        assert part in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_hook_module_needs_no_torch() -> None:
    code = ("import sys\nfrom lavis_lite.registry import registry\n"
            "[registry.get_hook_class(name) for name in registry.list_hooks()]\n"
            "print([name for name in ('torch', 'transformers') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(Path(".")), text=True,
                          capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
