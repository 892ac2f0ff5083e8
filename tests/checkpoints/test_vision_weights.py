"""Weights of a vision encoder alone, from every published layout; against transformers where it has the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lavis_lite.checkpoints import load_vision_weights, vision_state
from lavis_lite.checkpoints.formats.vision import load_vision_state
from lavis_lite.errors import CheckpointError
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.torchvision_shim import ensure_torchvision

SHAPE: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "mlp_ratio": 2.0}


def tiny(name: str, seed: int = 0, image_size: int = 28) -> VisionEncoder:
    torch.manual_seed(seed)
    encoder = VisionEncoder(name, image_size, **SHAPE)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.3)
    return encoder


def same(first: VisionEncoder, second: VisionEncoder) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["eva_clip_g", "clip_L"])
@pytest.mark.parametrize("layout", ["timm", "LAVIS", "OpenAI"])
def test_layouts_both_ways(name: str, layout: str, tmp_path: Path) -> None:
    source, target = tiny(name), tiny(name, seed=1)
    torch.save(vision_state(source, layout), tmp_path / "vit.pth")
    report = load_vision_weights(target, tmp_path / "vit.pth")
    assert same(source, target) and len(report.loaded) == len(target.vit.state_dict())


def test_openai_names_of_clip() -> None:
    found = vision_state(tiny("clip_L"), "OpenAI")
    assert {"visual.conv1.weight", "visual.class_embedding", "visual.transformer.resblocks.1.attn.in_proj_bias",
            "visual.transformer.resblocks.0.mlp.c_fc.weight"} <= found.keys()
    assert found["visual.positional_embedding"].shape == (5, 32)


@pytest.mark.parametrize("name", ["eva_clip_g", "clip_L"])
def test_a_whole_vit_may_have_one_block_more_and_its_end(name: str) -> None:
    source, target = tiny(name), tiny(name, seed=1)
    extra = {key.replace("blocks.1.", "blocks.2."): value for key, value in source.vit.state_dict().items()}
    end = {"norm.weight": torch.ones(32), "head.bias": torch.ones(10), "fc_norm.weight": torch.ones(32)}
    report = load_vision_state(target, {**extra, **source.vit.state_dict(), **end}, "FILE")
    assert same(source, target) and {"norm.weight", "blocks.2.norm1.weight"} <= report.unused.keys()


def test_the_vision_part_of_a_whole_lavis_model() -> None:
    source, target = tiny("eva_clip_g"), tiny("eva_clip_g", seed=1)
    whole: dict[str, Tensor] = {f"visual_encoder.{key}": value for key, value in source.vit.state_dict().items()}
    load_vision_state(target, whole | {"Qformer.x": torch.zeros(1), "ln_vision.weight": torch.ones(32)}, "FILE")
    assert same(source, target)


def test_positions_are_interpolated() -> None:
    report = load_vision_state(tiny("clip_L", image_size=56), tiny("clip_L").vit.state_dict(), "FILE")
    assert report.resized == ["pos_embed"]


@pytest.mark.parametrize(("change", "words"), [
    ({"blocks.3.norm1.weight": torch.zeros(32)}, "blocks.3.norm1.weight"),
    ({"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}, r"\[32, 3, 16, 16\] in the file, \[32, 3, 14, 14\]"),
    ({"pos_embed": torch.zeros(1, 5, 48)}, r"pos_embed is \[1, 5, 48\]"),
])
def test_misfits_are_refused_and_nothing_is_loaded(change: dict[str, Tensor], words: str) -> None:
    target, untouched = tiny("eva_clip_g", seed=1), tiny("eva_clip_g", seed=1)
    with pytest.raises(CheckpointError, match=words):
        load_vision_state(target, {**tiny("eva_clip_g").vit.state_dict(), **change}, "FILE")
    assert same(target, untouched)


def test_a_shallower_vit_is_refused() -> None:
    state = {key: value for key, value in tiny("eva_clip_g").vit.state_dict().items() if "blocks.1." not in key}
    with pytest.raises(CheckpointError, match="of the model's not in the file: blocks.1"):
        load_vision_state(tiny("eva_clip_g"), state, "FILE")


def test_a_language_model_is_no_vit(tmp_path: Path) -> None:
    save_file({"model.layers.0.x": torch.zeros(1)}, tmp_path / "lm.safetensors")
    with pytest.raises(CheckpointError, match="a language model"):
        load_vision_weights(tiny("eva_clip_g"), tmp_path / "lm.safetensors")


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)


@pytest.mark.parametrize("prefixed", [True, False])
def test_clip_equals_transformers(prefixed: bool) -> None:
    ensure_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    theirs = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                              num_attention_heads=4, image_size=28, patch_size=14)).eval()
    randomise(theirs)
    encoder = tiny("clip_L")
    state = {name.removeprefix("vision_model."): value for name, value in theirs.state_dict().items()}
    load_vision_state(encoder, {f"vision_model.{name}" if prefixed else name: state[name] for name in state}, "CLIP")
    image = torch.randn(2, 3, 28, 28)
    expected = theirs(image, output_hidden_states=True).hidden_states[-2]  # after the second-last of three blocks
    torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-5)


def test_eva_equals_the_vision_model_of_transformers_blip2() -> None:
    ensure_torchvision()
    from transformers import Blip2VisionConfig, Blip2VisionModel

    theirs = Blip2VisionModel(Blip2VisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                                num_attention_heads=4, image_size=28, patch_size=14)).eval()
    randomise(theirs)
    encoder = tiny("eva_clip_g")
    report = load_vision_state(encoder, {f"vision_model.{name}": value for name, value in theirs.state_dict().items()},
                               "BLIP-2")
    assert report.layout == "Hugging Face"
    image = torch.randn(2, 3, 28, 28)
    found = torch.nn.functional.layer_norm(encoder(image), (32,), theirs.post_layernorm.weight,
                                           theirs.post_layernorm.bias, theirs.post_layernorm.eps)
    torch.testing.assert_close(found, theirs(image).last_hidden_state, rtol=1e-5, atol=1e-5)
