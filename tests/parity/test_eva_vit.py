"""LAVIS' vision encoders, recorded: features, every block's output, gradients, and interpolated positions.

Runs every recorded folder whose config.json has `kind` at its top level (eva_clip_g, clip_L).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.models.checkpoints import load_vision_weights, vision_state
from lavis_lite.models.vision_encoder import VisionEncoder
from tests.conftest import find_parity


def recorded_folders() -> list[Path]:
    folder = find_parity()
    places = [folder, *sorted(folder.glob("*"))] if folder.is_dir() else []
    return [place for place in places if (place / "config.json").is_file()
            and "kind" in json.loads((place / "config.json").read_text())]


FOLDERS = recorded_folders()


@pytest.fixture(params=FOLDERS or [None], ids=lambda place: place.name if place else "none")
def case(request: pytest.FixtureRequest) -> Case:
    if request.param is None:
        pytest.skip("recorded outputs of a vision encoder (../shared/parity, or LAVIS_LITE_PARITY) not here")
    return Case(request.param)


class Case:
    """One recorded folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "expected.safetensors")
        self.facts: dict[str, Any] = json.loads((folder / "expected.json").read_text())

    def encoder(self, image_size: int | None = None, **more: Any) -> VisionEncoder:
        config = self.config
        encoder = VisionEncoder(config["kind"], image_size or config["img_size"], depth=config["depth"],
                                width=config["embed_dim"], heads=config["num_heads"], mlp_ratio=config["mlp_ratio"],
                                patch_size=config["patch_size"], **more)
        load_vision_weights(encoder, self.folder / "weights.safetensors")
        return encoder

    def check(self, name: str, found: Tensor) -> None:
        """At most 4 times LAVIS' own float32 error, never asked below 1e-6.

        Where that error is not recorded: LAVIS' float32 lies within 6.2e-7 of the largest value from our float64.
        """
        expected = self.expected[name]
        if name.startswith("block") and expected.shape == found.transpose(0, 1).shape != found.shape:
            found = found.transpose(0, 1)  # LAVIS' CLIP keeps tokens before images between its blocks
        error = self.facts.get("_fp32_vs_fp64_max_abs", {}).get(name, 6.2e-7 * float(expected.abs().max()))
        assert found.shape == expected.shape
        assert (found.detach() - expected).abs().max() <= max(4 * error, 1e-6), name


@pytest.mark.parametrize("checkpointing", [False, True, "fairscale"])
def test_features_blocks_and_gradients(case: Case, checkpointing: bool | str) -> None:
    if checkpointing == "fairscale":
        pytest.importorskip("fairscale")
    encoder = case.encoder(grad_checkpoint=checkpointing)
    outputs: dict[str, Tensor] = {}
    for index, block in enumerate(encoder.vit.blocks):
        block.register_forward_hook(
            lambda module, inputs, output, name=f"block{index}": outputs.update({name: output.detach()}))
    image = case.inputs["image"].requires_grad_()
    features = encoder(image)
    (features * case.inputs["cotangent"]).sum().backward()
    case.check("features", features)
    assert len(outputs) == encoder.num_layers
    for name, output in outputs.items():
        case.check(name, output)
    assert image.grad is not None
    case.check("grad_image", image.grad)
    check_gradient_norms(case, encoder)


def lavis_names(encoder: VisionEncoder) -> dict[str, str]:
    """LAVIS' name -> ours; both list the parameters in the same order."""
    return dict(zip(vision_state(encoder, "LAVIS"), dict(encoder.named_parameters()), strict=True))


def check_gradient_norms(case: Case, encoder: VisionEncoder) -> None:
    norms, parameters, names = case.facts["grad_norms"], dict(encoder.named_parameters()), lavis_names(encoder)
    assert names.keys() == norms.keys()
    for name, norm in norms.items():
        gradient = parameters[names[name]].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-6), name


def test_layer_ids_for_layerwise_rates(case: Case) -> None:
    encoder = case.encoder()
    names = lavis_names(encoder)
    for name, layer in case.facts.get("num_layer", {}).items():
        # LAVIS puts CLIP's patch embedding and first norm at the top; here they are at the bottom, as in EVA
        misplaced = name.startswith(("conv1.", "ln_pre."))
        assert encoder.layer_id(names[name]) == (0 if misplaced else layer), name


@pytest.mark.parametrize("size", [42, 56])
def test_larger_images_interpolate_positions(case: Case, size: int) -> None:
    encoder = case.encoder(size)
    recorded = case.expected[f"pos_embed_{size}"].shape  # LAVIS' CLIP has no batch axis here
    case.check(f"pos_embed_{size}", encoder.vit.pos_embed.reshape(recorded))
    case.check(f"features_{size}", encoder(case.inputs[f"image_{size}"]))


def test_a_frozen_encoder_gives_the_same_features(case: Case) -> None:
    case.check("features", case.encoder(frozen=True)(case.inputs["image"]))


def test_lavis_names_come_back_as_they_were(case: Case) -> None:
    weights, found = load_file(case.folder / "weights.safetensors"), vision_state(case.encoder(), "LAVIS")
    assert weights.keys() == found.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
