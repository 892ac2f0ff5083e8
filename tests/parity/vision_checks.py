"""What is compared with a recorded vision encoder, one function per comparison.

A folder needs nothing here: `comparisons_of` finds what its keys can be compared with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lavis_lite.checkpoints import load_vision_weights, vision_state
from lavis_lite.models.vision.encoder import VisionEncoder
from tests.parity.recordings import Comparison, Recording, folders_with

CHECKPOINTING: tuple[bool | str, ...] = (False, True, "fairscale")


def case_folders(parity: Path) -> list[Path]:
    """Recorded folders whose config.json has `kind` at its top level (eva_clip_g, clip_L)."""
    return folders_with(parity, lambda config: "kind" in config)


class Recorded(Recording):
    """Everything recorded of one encoder; its keys have no case in front."""

    def encoder(self, image_size: int | None = None, **more: Any) -> VisionEncoder:
        """The encoder with LAVIS' weights."""
        config = self.config
        encoder = VisionEncoder(config["kind"], image_size or config["img_size"], depth=config["depth"],
                                width=config["embed_dim"], heads=config["num_heads"], mlp_ratio=config["mlp_ratio"],
                                patch_size=config["patch_size"], **more)
        load_vision_weights(encoder, self.folder / "weights.safetensors")
        return encoder

    def tolerance(self, key: str) -> float:
        """As always; if LAVIS' error is not recorded: it lies within 6.2e-7 of the largest value from our float64."""
        return max(4 * self.error.get(key, 6.2e-7 * float(self.tensors[key].abs().max())), 1e-6)


def comparisons_of(recorded: Recorded) -> list[Comparison]:
    """Everything that a folder's keys can be compared in."""
    of_one_pass = {key for key in recorded.tensors if re.fullmatch(r"features|grad_image|block\d+", key)}
    found = [Comparison(f"checkpointing_{how}", named(features_blocks_and_gradients, how=how), frozenset(of_one_pass))
             for how in CHECKPOINTING if of_one_pass or recorded.expected.get("grad_norms")]
    for size in sorted({key.rpartition("_")[2] for key in recorded.tensors if re.fullmatch(r".+_\d+", key)}):
        keys = frozenset({f"pos_embed_{size}", f"features_{size}"} & recorded.tensors.keys())
        found.append(Comparison(f"{size}_pixels", named(larger_images, size=int(size)), keys))
    if "features" in recorded.tensors:
        found.append(Comparison("frozen", frozen_features, frozenset({"features"})))
    if recorded.expected.get("num_layer"):
        found.append(Comparison("layers", layer_ids))
    return [*found, Comparison("names", lavis_names_come_back)]


def named(check: Callable[..., None], **given: Any) -> Callable[[Any, str], None]:
    """A comparison with some arguments given, under its own name."""
    return functools.wraps(check)(functools.partial(check, **given))


def features_blocks_and_gradients(recorded: Recorded, _: str, how: bool | str) -> None:
    """What every block gives, and the gradients of (features * cotangent).sum()."""
    if how == "fairscale":
        pytest.importorskip("fairscale")
    encoder = recorded.encoder(grad_checkpoint=how)
    outputs: dict[str, Tensor] = {}
    for index, block in enumerate(encoder.vit.blocks):
        block.register_forward_hook(
            lambda module, inputs, output, name=f"block{index}": outputs.update({name: output.detach()}))
    image = recorded.given["image"].clone().requires_grad_()
    outputs["features"] = features = encoder(image)
    (features * recorded.given["cotangent"]).sum().backward()
    assert image.grad is not None and len(outputs) == encoder.num_layers + 1
    outputs["grad_image"] = image.grad
    for name in outputs.keys() & recorded.tensors.keys():
        recorded.check(name, _as_kept(outputs[name], recorded.tensors[name], name))
    gradient_norms(recorded, encoder)


def _as_kept(found: Tensor, expected: Tensor, name: str) -> Tensor:
    """LAVIS' CLIP keeps tokens before images between its blocks."""
    turned = name.startswith("block") and expected.shape == found.transpose(0, 1).shape != found.shape
    return found.transpose(0, 1) if turned else found


def lavis_names(encoder: VisionEncoder) -> dict[str, str]:
    """LAVIS' name -> ours; both list the parameters in the same order."""
    return dict(zip(vision_state(encoder, "LAVIS"), dict(encoder.named_parameters()), strict=True))


def gradient_norms(recorded: Recorded, encoder: VisionEncoder) -> None:
    """Of every recorded parameter."""
    parameters, names = dict(encoder.named_parameters()), lavis_names(encoder)
    for name, norm in recorded.expected.get("grad_norms", {}).items():
        gradient = parameters[names[name]].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-6), name


def layer_ids(recorded: Recorded, _: str) -> None:
    """Which layer a parameter belongs to, for layer-wise learning rates."""
    encoder = recorded.encoder()
    names = lavis_names(encoder)
    for name, layer in recorded.expected["num_layer"].items():
        # LAVIS puts CLIP's patch embedding and first norm at the top; here they are at the bottom, as in EVA
        misplaced = name.startswith(("conv1.", "ln_pre."))
        assert encoder.layer_id(names[name]) == (0 if misplaced else layer), name


def larger_images(recorded: Recorded, _: str, size: int) -> None:
    """Interpolated positions, and features with them."""
    encoder = recorded.encoder(size)
    if (key := f"pos_embed_{size}") in recorded.tensors:  # LAVIS' CLIP has no batch axis here
        recorded.check(key, encoder.vit.pos_embed.reshape(recorded.tensors[key].shape))
    if (key := f"features_{size}") in recorded.tensors:
        recorded.check(key, encoder(recorded.given[f"image_{size}"]))


def frozen_features(recorded: Recorded, _: str) -> None:
    """The same without autograd."""
    recorded.check("features", recorded.encoder(frozen=True)(recorded.given["image"]))


def lavis_names_come_back(recorded: Recorded, _: str) -> None:
    """Weights there and back."""
    weights, found = load_file(recorded.folder / "weights.safetensors"), vision_state(recorded.encoder(), "LAVIS")
    assert weights.keys() == found.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
