"""Any layer of a vision encoder, with and without its prefix tokens, and which of its weights train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.checkpoints.formats.vision import load_vision_state
from lavis_lite.config.schema import RunConfig
from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.config import Blip2Config
from lavis_lite.models.vision.config import timm_notes, training_of
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.processors.image import BlipImageEval
from lavis_lite.torchvision_shim import ensure_torchvision

CLIP: dict[str, Any] = {"depth": 4, "width": 32, "heads": 4, "mlp_ratio": 2.0, "patch_size": 8}
TIMM: dict[str, Any] = {"depth": 2, "width": 32, "heads": 2}


def clip_twin(size: int = 16) -> Any:
    """transformers' CLIP with five layers and random weights."""
    ensure_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(3)
    twin = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=5, patch_size=8,
                                            num_attention_heads=4, image_size=size)).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(std=0.3)
    return twin


@pytest.mark.parametrize("layer", [-2, -4, 2, [-2, 1], [-1]])
def test_features_are_those_of_transformers_clip(layer: Any) -> None:
    twin, image = clip_twin(), torch.randn(2, 3, 16, 16)
    encoder = VisionEncoder("clip_L", 16, layer=layer, frozen=True, **CLIP)
    load_vision_state(encoder, twin.state_dict(), "twin")
    with torch.no_grad():
        output = twin(image, output_hidden_states=True)
    wanted = [output.hidden_states[number] for number in (layer if isinstance(layer, list) else [layer])]
    if layer == [-1]:  # the last layer is read behind the final norm
        wanted = [output.last_hidden_state]
        norm = next(module for name, module in twin.named_modules() if name.endswith("post_layernorm"))
        if not torch.allclose(wanted[0], norm(output.hidden_states[-1]), atol=1e-6):
            wanted = [norm(output.hidden_states[-1])]
    torch.testing.assert_close(encoder(image), torch.cat(wanted, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "sizes", "prefix"), [
    ("vit_base_patch16_siglip_224", TIMM, 0), ("vit_small_patch14_reg4_dinov2", {**TIMM, "patch_size": 16}, 5),
    ("vit_base_patch16_clip_224", TIMM, 1), ("eva02_tiny_patch14_224", {**TIMM, "patch_size": 16}, 1),
    ("eva_clip_g", CLIP | {"patch_size": 16}, 1), ("mini", {}, 1)])
def test_families_with_and_without_prefix(name: str, sizes: dict[str, Any], prefix: int) -> None:
    """SigLIP has no class token, DINOv2 has registers too."""
    torch.manual_seed(0)
    image, wholes = torch.randn(1, 3, 64, 64), {}
    for keep in ("keep", "drop"):
        torch.manual_seed(1)
        encoder = VisionEncoder(name, 64, frozen=True, layer=[-1, -2], prefix=keep, **sizes)  # type: ignore[arg-type]
        wholes[keep] = encoder(image)
        assert wholes[keep].shape == (1, encoder.num_tokens, encoder.width)
    assert encoder.num_tokens == encoder.num_patches
    torch.testing.assert_close(wholes["keep"][:, prefix:], wholes["drop"], atol=0, rtol=0)
    assert wholes["keep"].shape[1] == wholes["drop"].shape[1] + prefix
    torch.manual_seed(1)
    alone = VisionEncoder(name, 64, frozen=True, layer=-1, prefix="drop", **sizes)
    torch.testing.assert_close(alone(image), wholes["drop"][..., :alone.width], atol=1e-6, rtol=1e-5)


def test_layers_behind_the_one_that_is_read_are_not_built() -> None:
    assert [VisionEncoder("clip_L", 16, layer=layer, **CLIP).num_layers for layer in (None, -2, 3, -1)] == [4, 4, 3, 5]
    assert "norm.weight" in VisionEncoder("clip_L", 16, layer=-1, **CLIP).vit.state_dict()
    assert "norm.weight" not in VisionEncoder("clip_L", 16, layer=-2, **CLIP).vit.state_dict()


@pytest.mark.parametrize("layer", [0, 6, -6, [], [-2, 9]])
def test_a_layer_out_of_range_is_said_before_anything_is_made(layer: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.vit_layer: .*it has 5"):
        VisionEncoder("clip_L", 16, layer=layer, **CLIP)
    section = Blip2Config(vit_model="clip_L", image_size=16, vit_args=CLIP, vit_layer=layer)
    assert [key for key, _ in section.errors(RunConfig())] == ["vit_layer"]


def trained(encoder: VisionEncoder) -> set[str]:
    encoder(torch.randn(1, 3, 16, 16)).square().sum().backward()
    return {name for name, value in encoder.vit.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", ["clip_L", "eva_clip_g"])
def test_the_last_blocks_train(name: str) -> None:
    encoder = VisionEncoder(name, 16, train="last_2", layer=-1, drop_path_rate=0.5, **CLIP)
    names = trained(encoder.train())
    assert {part.split(".")[1] for part in names if part.startswith("blocks")} == {"3", "4"}
    assert {part.split(".")[0] for part in names} == {"blocks", "norm"}
    assert [block.training for block in encoder.vit.blocks] == [False, False, False, True, True]


@pytest.mark.parametrize("name", ["clip_L", "eva_clip_g"])
def test_adapters_train_and_take_published_weights(name: str) -> None:
    plain = VisionEncoder(name, 16, frozen=True, **CLIP)
    encoder = VisionEncoder(name, 16, train="lora", **CLIP)
    load_vision_state(encoder, plain.vit.state_dict(), "plain")
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(encoder(image), plain(image), atol=1e-6, rtol=1e-5)
    names = trained(encoder)
    learnt = {part for part, value in encoder.vit.named_parameters() if value.requires_grad}
    assert names == learnt and all(".lora_" in part for part in names) and len(names) >= 4 * 3 * 2


def test_what_trains_in_words() -> None:
    assert [training_of(*given) for given in ((None, None), (None, True), (None, False), ("last_12", True))] == [
        (None, 0), ("frozen", 0), ("full", 0), ("last", 12)]
    with pytest.raises(ConfigError, match="last_9 are more than the 4 blocks"):
        VisionEncoder("clip_L", 16, train="last_9", **CLIP)
    with pytest.raises(ConfigError, match="model.vit_train: 'last_0' is not frozen, full, last_N"):
        training_of("last_0")
    with pytest.raises(ConfigError, match="fp16 weights cannot be trained"):
        VisionEncoder("clip_L", 16, train="lora", precision="fp16", **CLIP)


def test_what_timms_weights_were_trained_with_is_compared() -> None:
    """Another normalisation or activation gives no error, only worse features."""
    clip, half = BlipImageEval(16).normalisation, BlipImageEval(16, [0.5] * 3, [0.5] * 3).normalisation
    assert not list(timm_notes("vit_base_patch16_clip_quickgelu_224.openai", {"datasets.a.vis_processor": clip}))
    [line] = timm_notes("vit_base_patch16_clip_224.openai", {"datasets.a.vis_processor": clip})
    assert line.endswith("trained with QuickGELU: vit_base_patch16_clip_quickgelu_224.openai.")
    [line] = timm_notes("vit_base_patch16_siglip_224.webli", {"datasets.a.vis_processor": clip, "datasets.b": half})
    assert line.startswith("datasets.a.vis_processor: pictures get mean [0.48145466")
    assert "224.webli was trained with mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5]" in line
    assert not list(timm_notes("clip_L", {"a": half})) and not list(timm_notes("vit_base_patch16_224.nowhere", {}))


def test_recipes_take_the_activation_of_their_encoders_weights() -> None:
    names = {match for path in (Path(__file__).parents[2] / "projects").rglob("*.yaml")
             for match in re.findall(r"vit_model: (vit_\S+)", path.read_text(encoding="utf-8"))}
    assert len(names) > 2 and not [line for name in names for line in timm_notes(name, {})]
