"""The image side of stage 1 as a program for other runtimes: torch.export and ONNX, with any batch size."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.checkpoints.export import _new_path, _written
from lavis_lite.errors import CheckpointError, MissingExtraError
from lavis_lite.models.blip2.stage1 import Blip2Qformer


class ImageFeatures(nn.Module):
    """float[B, 3, H, W] -> unit vectors of ITC, float[B, Q, E].

    Args:
        model: a stage-1 model, in eval mode.
    """

    def __init__(self, model: Blip2Qformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """`extract_features(mode="image").image_embeds_proj`."""
        features, _ = self.model.forward_image(image)
        return self.model.project_image(features)


def export_image_features(model: nn.Module, path: str | Path) -> Path:
    """Write the image side of a stage-1 model, weights included; the batch is dynamic, the image size is not.

    Args:
        model: `blip2` or `blip2_feature_extractor`, on the CPU.
        path: must not exist; ends in .pt2 (torch.export) or .onnx.

    Raises:
        CheckpointError: another model, another ending, or the file exists.
        MissingExtraError: ONNX is wanted and its packages are not installed.
    """
    if not isinstance(model, Blip2Qformer):
        raise CheckpointError(f"{type(model).__name__} has no image features of ITC; take a model of arch blip2 or "
                              "blip2_feature_extractor.")
    target = _new_path(path)
    if target.suffix not in (".pt2", ".onnx"):
        raise CheckpointError(f"{target}: the name must end in .pt2 (torch.export) or .onnx.")
    if target.suffix == ".onnx" and not all(find_spec(name) for name in ("onnx", "onnxscript")):
        raise MissingExtraError("ONNX needs onnx and onnxscript: pip install 'lavis_lite[onnx]'")
    training = model.training
    try:
        program = _program(ImageFeatures(model.eval()))
    finally:
        model.train(training)
    with _written(target) as temporary:
        if target.suffix == ".pt2":
            with temporary.open("wb") as file:
                torch.export.save(program, file)
        else:
            exported = torch.onnx.export(program, input_names=["image"], output_names=["features"], dynamo=True,
                                         verbose=False)
            assert exported is not None
            exported.save(str(temporary), external_data=False)
    return target


@torch.no_grad()
def _program(features: ImageFeatures) -> torch.export.ExportedProgram:
    encoder: Any = features.model.vision_encoder
    example = encoder.example_input(2, torch.device("cpu"))
    return torch.export.export(features, (example,), dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}})
