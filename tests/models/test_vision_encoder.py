"""The vision encoder: shapes, second-last layer, freezing, precision, checkpointing, layer ids, faults."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.errors import ConfigError, MissingExtraError
from lavis_lite.models.vision.config import build_timm
from lavis_lite.models.vision.encoder import VisionEncoder, resize_pos_embed

TINY = {"depth": 3, "width": 48, "heads": 4}


def tiny(name: str = "eva_clip_g", image_size: int = 28, **more: Any) -> VisionEncoder:
    torch.manual_seed(0)
    encoder = VisionEncoder(name, image_size, **TINY, **more)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.3)
    return encoder


def images(count: int = 2, size: int = 28) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["eva_clip_g", "clip_L"])
def test_shapes_and_attributes(name: str) -> None:
    encoder = tiny(name, image_size=42)
    assert encoder(images(2, 42)).shape == (2, 10, 48)
    assert (encoder.width, encoder.num_patches, encoder.num_tokens, encoder.num_layers) == (48, 9, 10, 3)


@pytest.mark.parametrize(("name", "parameters"), [("eva_clip_g", 985_894_528), ("clip_L", 290_581_504)])
def test_full_size_builds_on_the_meta_device(name: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(name, precision="fp16", frozen=True)
        features = encoder(torch.empty(2, 3, 224, 224))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert features.shape == (2, 257, encoder.width) and features.dtype is torch.float32


@pytest.mark.parametrize(("size", "tokens"), [(364, 677), (490, 1226)])
def test_larger_images_have_more_positions(size: int, tokens: int) -> None:
    with torch.device("meta"):
        assert VisionEncoder("eva_clip_g", size, depth=1).vit.pos_embed.shape == (1, tokens, 1408)


def test_a_timm_vit_gives_its_second_last_layer() -> None:
    torch.manual_seed(0)
    encoder = VisionEncoder("vit_tiny_patch16_224", image_size=32, depth=2, width=48, heads=4)
    import timm

    whole = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=48, num_heads=4)
    missing = whole.load_state_dict(encoder.vit.state_dict(), strict=False).missing_keys
    assert all(key.startswith(("blocks.2.", "norm.", "head.")) for key in missing)
    expected = whole.forward_intermediates(images(2, 32), indices=[1], intermediates_only=True, norm=False,
                                           output_fmt="NLC", return_prefix_tokens=True)[0]
    torch.testing.assert_close(encoder(images(2, 32)), torch.cat([expected[1], expected[0]], dim=1))


def test_mini_is_a_preset_for_any_whole_number_of_patches() -> None:
    assert VisionEncoder("mini", 64, frozen=True)(images(2, 64)).shape == (2, 65, 128)
    assert VisionEncoder("mini", 32).vit.pos_embed.shape == (1, 17, 128)


def test_a_frozen_encoder_stays_in_eval_and_gives_no_gradient() -> None:
    parent = torch.nn.ModuleDict({"encoder": tiny(drop_path_rate=0.9).freeze()})
    parent.train()
    assert not any(module.training for module in parent["encoder"].modules())
    features = parent["encoder"](images())
    assert not features.requires_grad and not any(p.requires_grad for p in parent.parameters())
    torch.testing.assert_close(features, parent["encoder"](images()), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_a_trained_encoder_follows_autocast(frozen: bool) -> None:
    encoder = tiny(frozen=frozen)
    plain = encoder(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        difference = (encoder(images()) - plain).abs().max()
    assert difference == 0 if frozen else difference > 1e-3


def test_fp16_weights_are_computed_in_fp32_on_a_cpu() -> None:
    reference = tiny()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.half().float())
    encoder = tiny(precision="fp16").freeze()
    assert next(encoder.parameters()).dtype is torch.float16
    torch.testing.assert_close(encoder(images()), reference(images()).detach(), rtol=0, atol=0)


def test_bf16_weights_are_computed_in_bf16() -> None:
    encoder = tiny(precision="bf16", frozen=True)
    features = encoder(images())
    assert next(encoder.parameters()).dtype is torch.bfloat16 and features.dtype is torch.float32
    torch.testing.assert_close(features, features.bfloat16().float(), rtol=0, atol=0)


def test_half_precision_weights_cannot_train() -> None:
    with pytest.raises(ConfigError, match="vit_precision=fp32"):
        tiny(precision="fp16", frozen=False)
    with pytest.raises(ConfigError, match="freeze_vit"):
        tiny(precision="fp16")(images())


def gradients(encoder: VisionEncoder) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.train()
    image = images().requires_grad_()
    encoder(image).square().mean().backward()
    assert image.grad is not None
    found = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    return image.grad, found


@pytest.mark.parametrize("how", [True, "fairscale"])
@pytest.mark.parametrize("name", ["eva_clip_g", "clip_L"])
def test_activation_checkpointing_changes_no_gradient_and_no_name(name: str, how: bool | str) -> None:
    if how == "fairscale":
        pytest.importorskip("fairscale")
    plain, checkpointed = tiny(name), tiny(name, grad_checkpoint=how)
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    runs = []
    checkpointed.vit.blocks[1].mlp.fc1.register_forward_hook(lambda *_: runs.append(1))
    image_grad, expected = gradients(plain)
    checkpointed_grad, found = gradients(checkpointed)
    assert len(runs) == 2  # forward, and again within backward
    assert found.keys() == expected.keys() == {key for key, _ in plain.named_parameters()}
    torch.testing.assert_close(checkpointed_grad, image_grad, rtol=0, atol=0)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


def test_torchs_checkpointing_is_non_reentrant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = torch.utils.checkpoint.checkpoint

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["use_reentrant"])
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", spy)
    gradients(tiny(grad_checkpoint=True))
    assert seen == [False] * 3


def test_fairscale_absent_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairscale.nn.checkpoint", None)
    with pytest.raises(MissingExtraError, match="pip install fairscale"):
        tiny(grad_checkpoint="fairscale")


@pytest.mark.parametrize("name", ["eva_clip_g", "clip_L"])
def test_layer_ids(name: str) -> None:
    encoder = tiny(name)
    ids = {key: encoder.layer_id(f"vision_encoder.{key}") for key, _ in encoder.named_parameters()}
    for key, layer in ids.items():
        assert layer == (int(key.split(".")[2]) + 1 if "blocks" in key else 0), key
    assert encoder.layer_id("vit.norm.weight") == 3
    assert encoder.layer_scale("vit.pos_embed", 0.5) == 0.5**4
    assert encoder.layer_scale("vit.blocks.2.norm1.weight", 0.5) == 0.5


def test_resized_positions_keep_the_class_token_and_a_constant_field() -> None:
    table = torch.cat([torch.full((1, 1, 4), 7.0), torch.full((1, 9, 4), 3.0)], dim=1)
    resized = resize_pos_embed(table, 5, 1, align_corners=False)
    assert resized.shape == (1, 26, 4)
    torch.testing.assert_close(resized[:, 0], table[:, 0])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 25, 4), 3.0))


def test_aligned_corners_keep_the_corner_positions() -> None:
    table = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(table, 5, 1, align_corners=True)[:, 1:]
    torch.testing.assert_close(resized[:, [0, 4, 20, 24]], table[:, 1:][:, [0, 2, 6, 8]])


@pytest.mark.parametrize(("arguments", "words"), [
    ({"name": "eva_clip_h"}, "did you mean 'eva_clip_g'"),
    ({"name": "vit_base_patch16_225"}, "vit_base_patch16_224"),
    ({"name": "resnet50"}, "not a plain ViT"),
    ({"name": "eva_clip_g", "image_size": 225}, "nearest is 224"),
    ({"name": "vit_tiny_patch16_224", "image_size": 225, "depth": 1}, "nearest is 224"),
    ({"name": "eva_clip_g", "precision": "fp8"}, "fp32, fp16, bf16"),
    ({"name": "eva_clip_g", "width": 50, "heads": 4}, "not a multiple"),
    ({"name": "eva_clip_g", "grad_checkpoint": "fairscal"}, "use_grad_checkpoint"),
    ({"name": "eva_clip_g", "pretrained": True}, "load_vision_weights"),
    ({"name": "mini", "depth": 2}, "fixed"),
])
def test_faults_name_the_key_and_the_remedy(arguments: dict[str, Any], words: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=words):
        VisionEncoder(**arguments)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="model.image_size"):
        tiny()(images(2, 42))


def test_a_vit_of_one_block_has_no_second_last_layer() -> None:
    with pytest.raises(ConfigError, match="at least two blocks"):
        build_timm("vit_tiny_patch16_224", 32, 0.0, {"depth": 0, "width": 48, "heads": 4}, False)
