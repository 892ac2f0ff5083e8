"""A folder of stage-1 cases whose vision encoder is CLIP's, recorded from this package's own model.

It says nothing about LAVIS' numbers: it shows that the comparisons follow LAVIS' names for such a model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lavis_lite.checkpoints import to_lavis
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from tests.parity.blip2_cases import Recorded, inject, section
from tests.parity.blip2_checks import BETWEEN, LOSSES, between, grads_of
from tests.parity.lavis_names import our_names

CASE = "pretrain_b2"
WHOLE = ("visual_encoder.class_embedding", "query_tokens", "ln_vision.weight")


def record_as_clip(folder: Path) -> None:
    """Give a recorded folder's case a model with CLIP's vision encoder: weights, tensors, losses and gradients."""
    config = json.loads((folder / "config.json").read_text())
    config["vit"] |= {"kind": "clip_L", "mlp_ratio": 4.0}
    config["model_args"]["freeze_vit"] = False
    (folder / "config.json").write_text(json.dumps(config))
    recorded = Recorded(folder)
    torch.manual_seed(0)
    model = Blip2Qformer.from_config(section(recorded)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    save_file(lavis({**model.state_dict()}, recorded), folder / "weights.safetensors")
    expected = recorded.expected[CASE]
    inject(model, expected)
    output, found = model(recorded.samples(CASE)), between(model, recorded.samples(CASE))
    names = our_names(folder)  # without LAVIS' second names of tied tensors, and its table of positions
    grads = {name: value for name, value in lavis(grads_of(model, output.loss), recorded).items() if name in names}
    tensors = {f"{CASE}/{name}": found[name].detach() for name in BETWEEN}
    tensors |= {f"{CASE}/grad/{name}": grads[name] for name in WHOLE}
    facts = {name: float(getattr(output, name).detach()) for name in LOSSES}
    facts |= {"grad_norms": {name: float(value.norm()) for name, value in grads.items()}}
    kept = {name: expected[name] for name in ("neg_image_idx_per_text", "neg_text_idx_per_image")}
    (folder / "expected.json").write_text(json.dumps({CASE: kept | facts, "_fp32_vs_fp64_max_abs": {}}))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "expected.safetensors")


def lavis(tensors: dict[str, Tensor], recorded: Recorded) -> dict[str, Tensor]:
    """The same under LAVIS' names."""
    positions = recorded.config["qformer"]["max_position_embeddings"]
    return {name: value.detach().clone().contiguous()
            for name, value in to_lavis(tensors, "opt", positions).tensors.items()}
