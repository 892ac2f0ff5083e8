"""Image features as programs of other runtimes: equal at every batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite import load_model
from lavis_lite.checkpoints import image_features
from lavis_lite.checkpoints.image_features import export_image_features
from lavis_lite.errors import CheckpointError, MissingExtraError

SIZES = (1, 2, 7, 64)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("blip2_feature_extractor", "mini", is_eval=True)


@torch.no_grad()
def expected(model: Any, image: torch.Tensor) -> torch.Tensor:
    return model.extract_features({"image": image}, mode="image").image_embeds_proj


def test_a_torch_program_takes_any_batch(model: Any, tmp_path: Path) -> None:
    program = torch.export.load(export_image_features(model, tmp_path / "features.pt2")).module()
    for size in SIZES:
        image = torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(size))
        torch.testing.assert_close(program(image), expected(model, image), rtol=0, atol=1e-6)
    assert not model.training


@pytest.mark.long
def test_onnx_is_equal_at_every_batch_size(model: Any, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (onnx extra)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (onnx extra)")
    path = export_image_features(model, tmp_path / "features.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in range(1, 65):
        image = torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(size))
        [found] = session.run(["features"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(model, image), rtol=0, atol=1e-5)


def test_what_cannot_be_exported(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="must end in .pt2"):
        export_image_features(model, tmp_path / "features.bin")
    with pytest.raises(CheckpointError, match="take a model of arch blip2"):
        export_image_features(torch.nn.Linear(1, 1), tmp_path / "features.onnx")
    monkeypatch.setattr(image_features, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lavis_lite\[onnx\]"):
        export_image_features(model, tmp_path / "features.onnx")
    assert list(tmp_path.iterdir()) == []
