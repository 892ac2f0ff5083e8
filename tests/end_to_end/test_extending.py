"""examples/extending/: short enough, and it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import ROOT, Train, read_log

FOLDER = ROOT / "examples/extending"


@pytest.mark.parametrize(("name", "most"), [("ema_hook", 25), ("caption_hook", 20), ("auxiliary_loss", 40),
                                            ("linear_projector", 50)])
def test_a_change_from_outside_is_short(name: str, most: int) -> None:
    lines = [line for line in (FOLDER / f"{name}.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= most


def test_hook_optimizer_and_loss_from_outside_run_and_resume(train_here: Train, tmp_path: Path) -> None:
    options = ["run.max_iters=4", "run.save_every=2", "run.hooks.captions.every=2", "run.tensorboard=true",
               f"run.output_dir={tmp_path}", "run.keep_checkpoints=4"]
    done = train_here(*options, cfg="examples/extending/run.yaml")
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.iterdir()
    rows = read_log(tmp_path)
    losses = [row for row in rows if "lr" in row]
    assert all(row["loss_diversity"] > 0 for row in losses)
    parts = ("loss_itc", "loss_itm", "loss_lm", "loss_diversity")
    assert losses[0]["loss"] == pytest.approx(sum(losses[0][part] for part in parts), rel=1e-5)
    assert [row["step"] for row in rows if row.get("text") == "captions"] == [2, 4]
    last = run / "checkpoints/step_00000004"
    state = torch.load(last / "training_state.pt", weights_only=True)
    assert state["optimizer_name"] == "nadam"
    average, weights = state["hooks"]["my_ema"], load_file(last / "model.safetensors")
    assert average.keys() == weights.keys() and not torch.equal(average["temp"], weights["temp"])

    done = train_here(*options, cfg="examples/extending/run.yaml",
                      flags=("--resume", str(run / "checkpoints/step_00000002")))
    assert done.returncode == 0, done.stderr
    again = torch.load(last / "training_state.pt", weights_only=True)["hooks"]["my_ema"]
    assert all(torch.equal(average[name], again[name]) for name in average)
