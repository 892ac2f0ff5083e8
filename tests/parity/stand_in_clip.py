"""A folder of cases of CLIP's image transformer, computed by `plain_clip`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.parity.plain_clip import PlainClip
from tests.parity.stand_ins import save


def record_clip(folder: Path) -> None:
    """Features, blocks (tokens first, as LAVIS keeps them), gradients, other resolutions, layers' numbers."""
    torch.manual_seed(7)
    config = {"kind": "clip_L", "img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 3, "num_heads": 4,
              "mlp_ratio": 4.0, "norm_eps": 1e-5}
    model = PlainClip(28, 14, 48, 3, 4, 4.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    given = {"image": torch.randn(2, 3, 28, 28), "image_42": torch.randn(2, 3, 42, 42),
             "image_56": torch.randn(2, 3, 56, 56), "cotangent": torch.randn(2, 5, 48)}
    found: dict[str, Tensor] = {}
    hooks = [block.register_forward_hook(lambda module, inputs, output, name=f"block{index}": found.update(
        {name: output.detach().transpose(0, 1)})) for index, block in enumerate(model.transformer.resblocks)]
    image = given["image"].clone().requires_grad_()
    found["features"] = model(image)
    for hook in hooks:
        hook.remove()
    (found["features"] * given["cotangent"]).sum().backward()
    assert image.grad is not None
    found["grad_image"] = image.grad
    with torch.no_grad():
        for size in (42, 56):
            found[f"pos_embed_{size}"] = model.resized(size // 14)
            found[f"features_{size}"] = model(given[f"image_{size}"], found[f"pos_embed_{size}"])
    norms = {name: float(value.grad.norm()) for name, value in model.named_parameters() if value.grad is not None}
    layers = {name: int(name.split(".")[2]) + 1 if "resblocks" in name else 0 for name in norms}
    misplaced = {name: 4 for name in norms if name.startswith(("conv1.", "ln_pre."))}
    tensors = {name: value.detach().clone() for name, value in found.items()}
    save(folder, config, dict(model.state_dict()), given, tensors,
         expected={"grad_norms": norms, "num_layer": layers | misplaced})
