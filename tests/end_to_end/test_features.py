"""`data cache-features`, then training from it: the same losses as from images."""

from __future__ import annotations

from pathlib import Path

import pytest

from lavis_lite.cli.main import run_command
from tests.end_to_end.conftest import SMALL, Train, losses

SHORT = ["run.max_iters=2", "run.test_splits=[]"]


def test_training_from_kept_features(train_here: Train, tmp_path: Path) -> None:
    kept = {dtype: tmp_path / dtype / "mini_world_caption" for dtype in ("fp32", "bf16")}
    images = train_here(*SHORT, f"run.output_dir={tmp_path}/images")
    assert images.returncode == 0, images.stderr
    found = {"images": losses(tmp_path / "images")}
    for dtype, folder in kept.items():
        words = ["cache-features", "--cfg-path", "projects/blip2/stage1.yaml", "--out", str(folder.parent), "--dtype",
                 dtype, "--options", *SMALL]
        assert run_command("data", words) == 0
        features = train_here(*SHORT, f"run.output_dir={tmp_path}/out_{dtype}",
                              f"datasets.mini_world_caption.features={folder}")
        assert features.returncode == 0, features.stderr
        found[dtype] = losses(tmp_path / f"out_{dtype}")
    assert found["fp32"] == found["images"] and len(found["images"]) == 2
    for step, values in found["images"].items():
        assert found["bf16"][step] == pytest.approx(values, rel=2e-3) and found["bf16"][step] != values
