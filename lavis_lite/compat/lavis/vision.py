"""Vision encoders as LAVIS' helpers return them: the ViT itself, with LAVIS' names inside (EVA) and its attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.checkpoints.formats.vision import load_vision_weights
from lavis_lite.checkpoints.manifest import source_of
from lavis_lite.checkpoints.weights import VISION_WEIGHTS, WeightFile
from lavis_lite.compat.lavis.sizes import current
from lavis_lite.models.provenance import mark_loaded
from lavis_lite.models.vision.encoder import VisionEncoder


class LayerNorm(nn.LayerNorm):
    """A norm that computes in fp32 and returns its input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """float[..., D] -> float[..., D]."""
        return super().forward(x.type(torch.float32)).type(x.dtype)


class LavisEncoder:
    """What is mixed into a ViT of timm: LAVIS' call, without pooling or head, and its questions."""

    embed_dim: int
    blocks: Any
    keeper: VisionEncoder

    def forward(self, x: Tensor) -> Tensor:
        """Features of every token: float[B,3,H,W] -> float[B,P,Dv], in the type of the weights."""
        return self.forward_features(x.to(next(self.parameters()).dtype))  # type: ignore[attr-defined]

    def get_num_layer(self, var_name: str = "") -> int:
        """Depth of a parameter for layer-wise learning rates; of no name in particular, the depth after the last."""
        return self.__dict__["keeper"].layer_id(var_name) if var_name else len(self.blocks) + 1


def create_vision_encoder(model_name: str, img_size: int = 224, drop_path_rate: float = 0.0,
                          use_grad_checkpoint: Any = False, precision: str = "fp16") -> nn.Module:
    """A ViT with the weights of its name, not frozen; half precision takes effect where there is a GPU.

    Args:
        model_name: eva_clip_g | clip_L | mini | a plain ViT of timm.
        img_size: pixels per side.
        drop_path_rate, use_grad_checkpoint: as the section's keys.
        precision: fp16 | fp32.

    Raises:
        ConfigError: there is no such encoder. DataError: its weights are neither here nor downloadable.
    """
    size = current()
    keeper = VisionEncoder(model_name, img_size, drop_path_rate, use_grad_checkpoint, **size.vit_args)
    vit = keeper.vit
    name = size.vit_weights or VISION_WEIGHTS.get(model_name)
    if name is not None and name != "random":
        path = str(WeightFile("vit_weights", name).fetch())
        load_vision_weights(keeper, path)
        mark_loaded(vit, source_of("encoder", name, path))
    vit.__class__ = type(type(vit).__name__, (LavisEncoder, type(vit)), {})
    vit.__dict__["keeper"] = keeper  # not a submodule: it contains the ViT
    vit.num_features = vit.embed_dim
    if precision == "fp16" and torch.cuda.is_available():
        convert_weights_to_fp16(vit)
    encoder: nn.Module = vit
    return encoder


def convert_weights_to_fp16(model: nn.Module) -> None:
    """Halve the precision of convolutions and linear layers."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.half()


def create_eva_vit_g(img_size: int = 224, drop_path_rate: float = 0.4, use_checkpoint: bool = False,
                     precision: str = "fp16") -> nn.Module:
    """EVA-CLIP's ViT-g/14 without its last block."""
    return create_vision_encoder("eva_clip_g", img_size, drop_path_rate, use_checkpoint, precision)


def create_clip_vit_L(img_size: int = 224, use_checkpoint: bool = False, precision: str = "fp16") -> nn.Module:
    """CLIP's ViT-L/14 without its last block; its parameters have timm's names."""
    return create_vision_encoder("clip_L", img_size, 0.0, use_checkpoint, precision)


def disabled_train(self: Any, mode: bool = True) -> Any:
    """Put in the place of a module's `train`, it keeps the module in the mode it is in."""
    return self
