"""The vision encoder: image -> one feature per patch, by a ViT of timm.

BLIP-2 reads the features of a ViT's second-last layer (section 3.4), and so does LLaVA. `layer` chooses others. What
comes after the last layer that is read, and the head, is never built.

Shapes: B images, H = W pixels, P tokens (prefix tokens, then patches in reading order), Dv width of the ViT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError, MissingExtraError
from lavis_lite.models.base import freeze as keep_frozen
from lavis_lite.models.base import without_autocast
from lavis_lite.models.vision.config import (
    MINI,
    MINI_DEPTH,
    MINI_PATCH_SIZE,
    PRESETS,
    Layer,
    ViTShape,
    build_timm,
    check_image_size,
    check_mini,
    chosen_layers,
    cut,
    override,
    training_of,
)
from lavis_lite.products import replace_linears
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Encoder(nn.Module):
    """Base class of encoders: raw input of any kind -> float[B,P,Dv], or fewer features with rows of NaN after them.

    A subclass is built with the keys of `model.vit_args` and registers: `@registry.register_encoder("name")` makes it a
    `model.vit_model`. A data set brings its input under `image`; see `arrays` of data set sections.

    Attributes:
        width: Dv.
        input_shape: of one sample, None where any size goes; for messages and for `example_input`.
        pads: whether features may end in rows of NaN.
        trains: whether it trains even if model.freeze_vit is set.
    """

    width: int
    input_shape: tuple[int | None, ...] = (3, None, None)
    pads = trains = False
    image_size = 64
    """what stands for None in `input_shape` in a dry run"""

    def check_input(self, image: Tensor) -> None:
        """Check the shape of a batch.

        Raises:
            DataError: it has another shape than the encoder takes.
        """
        sizes = zip(self.input_shape, image.shape[1:], strict=False)
        if image.ndim != len(self.input_shape) + 1 or any(size not in (None, own) for size, own in sizes):
            shape = ", ".join("any" if size is None else str(size) for size in self.input_shape)
            raise DataError(f"{type(self).__name__} takes input of shape (B, {shape}), not {tuple(image.shape)}.")

    def example_input(self, batch: int, device: torch.device) -> Tensor:
        """Input of the right shape without content, for a dry run."""
        return torch.zeros(batch, *(size or self.image_size for size in self.input_shape), device=device)

    def layer_scale(self, name: str, decay: float) -> float:
        """Learning-rate factor of a parameter with layer-wise decay; 1 without layers."""
        return 1.0


class VisionEncoder(Encoder):
    """A ViT up to the layer that is read: `encoder(image float[B, 3, H, W]) -> float[B, P, Dv]`.

    Args:
        name: "eva_clip_g" (EVA-CLIP ViT-g/14), "clip_L" (CLIP ViT-L/14), "mini" (the embedded default), or the name of
            any plain ViT of timm.
        image_size: pixels per side.
        drop_path_rate: stochastic depth of the last block while training; grows linearly from 0 at the first.
        grad_checkpoint: recompute activations in the backward pass: True by torch (non-reentrant), "fairscale" by
            fairscale's checkpoint_wrapper. Gradients and parameter names are the same either way.
        precision: dtype of the weights once frozen; a trained encoder has fp32 weights (autocast makes it fast).
        frozen: True: freeze now; False: it trains, so that precision must be fp32; None: `freeze()` may follow.
        pretrained: take timm's own weights for a timm name (a download). All else starts at random, to be filled by
            `lavis_lite.checkpoints.load_vision_weights`.
        layer: see `lavis_lite.models.vision.config.chosen_layers`.
        prefix: keep | drop the tokens in front of the patches: class token, register tokens.
        train: frozen | full | last_N (the last N of the blocks that run) | lora; None: by `frozen`.
        depth, width, heads, mlp_ratio, patch_size, norm_eps: override the preset's (depth: blocks before the last).

    Attributes:
        vit: timm's model; its parameter names are those of LAVIS' EVA ViT.
        width: Dv. num_patches, num_tokens: of one image, patches alone and all features. num_layers: blocks that run.
        layers: after how many blocks features are taken. total_layers: blocks of the whole ViT.
        image_size, patch_size: pixels per side. frozen: whether `freeze()` was called.

    Raises:
        ConfigError: unknown name, impossible size or dimensions, or half-precision weights that would train.
        MissingExtraError: "fairscale" is asked for but not installed.
    """

    def __init__(self, name: str, image_size: int = 224, drop_path_rate: float = 0.0,
                 grad_checkpoint: bool | str = False, precision: Precision = "fp32", frozen: bool | None = None,
                 pretrained: bool = False, *, layer: Layer = None, prefix: Literal["keep", "drop"] = "keep",
                 train: str | None = None, depth: int | None = None, width: int | None = None,
                 heads: int | None = None, mlp_ratio: float | None = None, patch_size: int | None = None,
                 norm_eps: float | None = None) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise ConfigError(f"model.vit_precision: {precision!r} is not one of {', '.join(get_args(Precision))}.")
        self.name, self.image_size, self.precision, self.frozen = name, image_size, precision, False
        how, blocks = training_of(train, frozen)
        if how not in ("frozen", None):
            self._check_trainable()
        changes = {"depth": depth, "width": width, "heads": heads, "mlp_ratio": mlp_ratio, "patch_size": patch_size,
                   "norm_eps": norm_eps}
        self.align_corners = False
        self.vit, self.layers, self.total_layers = self._build(drop_path_rate, changes, pretrained, layer)
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        check_image_size(name, image_size, self.patch_size)
        self.width = int(self.vit.embed_dim) * len(self.layers)
        self.num_layers = len(self.vit.blocks)
        self.num_patches = int(self.vit.patch_embed.num_patches)
        prefixes = int(getattr(self.vit, "num_prefix_tokens", 0))
        self.dropped = prefixes if prefix == "drop" else 0
        self.num_tokens = self.num_patches + prefixes - self.dropped
        replace_linears(self.vit)
        self._set_checkpointing(grad_checkpoint)
        if how == "frozen":
            self.freeze()
        elif how in ("last", "lora"):
            from lavis_lite.models.vision import training  # most encoders are frozen

            training.freeze_all_but_last(self.vit, blocks) if how == "last" else training.add_adapters(self.vit)

    def differences(self, section: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """(key, a section's value, one's own) of what its features are, which no tensor's shape shows.

        Nothing for a section with another encoder, or with an interpolation.
        """
        layer, prefix = section["vit_layer"], section["vit_cls"] or "keep"
        if section["vit_model"] == self.name and not isinstance(layer, str):
            yield "vit_layer", chosen_layers(self.name, layer, self.total_layers), self.layers
            if getattr(self.vit, "num_prefix_tokens", 0):
                yield "vit_cls", prefix, "drop" if self.dropped else "keep"

    # construction ---------------------------------------------------------------------------------------------------
    def _build(self, drop_path_rate: float, changes: dict[str, Any], pretrained: bool,
               layer: Layer) -> tuple[Any, list[int], int]:
        """The ViT, after how many blocks it is read, and how many it would have."""
        ensure_torchvision()  # timm imports it
        if self.name == MINI:
            check_mini(self.image_size, changes)
            mini, layers = mini_vit(self.image_size), chosen_layers(self.name, layer, MINI_DEPTH)
            if max(layers) < MINI_DEPTH:
                cut(mini, max(layers))
            return mini, layers, MINI_DEPTH
        if self.name not in PRESETS:
            return build_timm(self.name, self.image_size, drop_path_rate, changes, pretrained, layer)
        if pretrained:
            raise ConfigError(f"model.vit_model: no weights of {self.name!r} come with the package; load them from a "
                              "file with lavis_lite.checkpoints.load_vision_weights(encoder, path).")
        preset = PRESETS[self.name]
        shape = override(preset.shape, changes)
        self.align_corners = preset.align_corners
        check_image_size(self.name, self.image_size, shape.patch_size)
        total = shape.depth + 1
        layers = chosen_layers(self.name, layer, total)
        shape = replace(shape, depth=max(layers))
        with_norm = shape.depth == total
        return build_preset(preset.kind, shape, self.image_size, drop_path_rate, with_norm), layers, total

    def _set_checkpointing(self, how: bool | str) -> None:
        if how is True:
            self.vit.set_grad_checkpointing(True)
        elif how == "fairscale":
            try:
                from fairscale.nn.checkpoint import checkpoint_wrapper
            except ImportError as error:
                raise MissingExtraError("model.use_grad_checkpoint: 'fairscale' needs the package fairscale: pip "
                                        "install fairscale, or set it to true for torch's own "
                                        "checkpointing.") from error
            for block in self.vit.blocks:
                checkpoint_wrapper(block)  # replaces the block's forward, so that names stay
        elif how is not False:
            raise ConfigError(f"model.use_grad_checkpoint: {how!r} is not one of true, false, 'fairscale'.")

    # use --------------------------------------------------------------------------------------------------------------
    def freeze(self) -> VisionEncoder:
        """Make the weights constant, in the dtype of `precision`; `.train()` of a parent changes nothing any more."""
        keep_frozen(self)
        self.frozen = True
        self.vit.to(DTYPES[self.precision])
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Features of every token: float[B, 3, H, W] -> float[B, P, Dv].

        A frozen encoder runs without autograd and outside of autocast, in its own dtype (fp16 weights are computed in
        fp32 on a CPU), and returns float32. Its features do not depend on how the rest of the model trains. A trained
        encoder follows the surrounding autocast.

        Raises:
            ConfigError: images of another size or type than the encoder takes, or half-precision weights that train.
        """
        self._check_image(image)
        if not self.frozen:
            self._check_trainable()
            return self._features(image.to(next(self.vit.parameters()).dtype))
        dtype = self._settle_dtype(image.device)
        with torch.no_grad(), without_autocast(image.device):
            return self._features(image.to(dtype)).float()

    def _features(self, image: Tensor) -> Tensor:
        """Of the chosen layers, side by side along the channels, without dropped tokens."""
        if len(self.layers) == 1:
            features: Tensor = self.vit.forward_features(image)
            return features[:, self.dropped:]
        order = sorted(set(self.layers))
        last, found = self.vit.forward_intermediates(image, [number - 1 for number in order], output_fmt="NLC",
                                                     return_prefix_tokens=True)
        whole = [torch.cat(part[::-1], 1) if isinstance(part, tuple) else part for part in found]
        by_layer = dict(zip(order, [*whole[:-1], last], strict=True))  # `last` went through the norm
        return torch.cat([by_layer[number] for number in self.layers], -1)[:, self.dropped:]

    def _check_image(self, image: Tensor) -> None:
        size = self.image_size
        maker = f"an image processor such as {{name: blip_image_eval, image_size: {size}}}"
        if not image.is_floating_point():
            raise ConfigError(f"vision encoder {self.name!r}: the image has {str(image.dtype).removeprefix('torch.')} "
                              f"values; it takes the normalised floats that {maker} makes of a PIL image "
                              "(vis_processors['eval'] of load_model_and_preprocess).")
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            raise ConfigError(f"vision encoder {self.name!r} takes images of shape (B, 3, {size}, {size}), not "
                              f"{tuple(image.shape)}. {maker[0].upper()}{maker[1:]} makes them; in a YAML give "
                              "model.image_size and the image_size of datasets.*.vis_processor the same value.")

    def _check_trainable(self) -> None:
        if self.precision != "fp32":
            raise ConfigError(f"model.vit_precision: {self.precision} weights cannot be trained (freeze_vit or "
                              "vit_train asks for that). Set model.vit_precision=fp32; run.amp=true gives "
                              "half-precision arithmetic.")

    def _settle_dtype(self, device: torch.device) -> torch.dtype:
        """Bring frozen weights to the dtype they are computed in; fp16 arithmetic on a CPU is slow and incomplete."""
        on_cpu = device.type == "cpu" and self.precision == "fp16"
        wanted = torch.float32 if on_cpu else DTYPES[self.precision]
        if next(self.vit.parameters()).dtype is not wanted:
            self.vit.to(wanted)
        return wanted

    def blocks_to_shard(self, device: torch.device) -> list[nn.Module]:
        """The blocks, in the type in which they will be computed on a device."""
        if self.frozen:
            self._settle_dtype(device)
        return list(self.vit.blocks)

    # what others need to know -----------------------------------------------------------------------------------------
    @property
    def design(self) -> dict[str, Any]:
        """What features depend on beside pixels and weights, as plain values."""
        attention, mlp = (next((part for block in self.vit.blocks if (part := getattr(block, name, None))), None)
                          for name in ("attn", "mlp"))
        return {"layers": list(self.layers), "dropped tokens": self.dropped,
                "heads": getattr(attention, "num_heads", None), "activation": type(getattr(mlp, "act", None)).__name__,
                "norm_eps": [module.eps for module in self.vit.modules() if isinstance(module, nn.LayerNorm)][:1]}

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 embeddings and what precedes the blocks, i+1 block i.

        Args:
            name: a parameter's name, with or without the path to this module (`vit.blocks.3.norm1.weight`).
        """
        parts = name.split(".")
        if "blocks" in parts[:-1]:
            return int(parts[parts.index("blocks") + 1]) + 1
        return self.num_layers if {"norm", "fc_norm", "attn_pool"} & set(parts) else 0

    def layer_scale(self, name: str, decay: float) -> float:
        """Learning-rate factor of a parameter: decay ** (distance from the layer after the last block)."""
        return decay ** (self.num_layers + 1 - self.layer_id(name))

    def fit_pos_embed(self, table: Tensor) -> Tensor:
        """Position embeddings of another resolution, interpolated to this encoder's: -> float[1, N, Dv].

        Returned as it is where the sizes agree or it cannot be a square grid (the caller's shape check then speaks).
        """
        own = self.vit.pos_embed
        if own is None or table.ndim != 3 or table.shape == own.shape or table.shape[2] != own.shape[2]:
            return table
        prefix = own.shape[1] - self.num_patches
        patches = table.shape[1] - prefix
        square = patches >= 1 and round(patches**0.5) ** 2 == patches
        return resize_pos_embed(table, round(self.num_patches**0.5), prefix, self.align_corners) if square else table

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        return f"{self.name}, {self.image_size} px, {self.precision}, {'frozen' if self.frozen else 'trainable'}"


# --- ViTs without weights ---------------------------------------------------------------------------------------------
MINI_WIDTH, MINI_HEADS = 128, 4


def build_preset(kind: str, shape: ViTShape, image_size: int, drop_path_rate: float, with_norm: bool) -> nn.Module:
    """The ViT of a preset, without a head.

    eva: EVA-CLIP's, with fused qkv and biases of q and v alone. clip: CLIP's, with a norm before the blocks, no patch
    bias, QuickGELU. Both have absolute positions.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "eva": (Eva, {"qkv_bias": True, "qkv_fused": True, "use_abs_pos_emb": True, "use_rot_pos_emb": False}),
        "clip": (VisionTransformer, {"pre_norm": True, "act_layer": "quick_gelu"}),
    }
    make, own = kinds[kind]
    vit: nn.Module = make(img_size=image_size, patch_size=shape.patch_size, num_classes=0, global_pool="",
                          embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads, mlp_ratio=shape.mlp_ratio,
                          drop_path_rate=drop_path_rate, norm_layer=partial(nn.LayerNorm, eps=shape.norm_eps), **own)
    if not with_norm:
        vit.norm = nn.Identity()
    return vit


class ConvStem(nn.Module):
    """Patch embedding by three stride-2 convolutions and a projection: float[B, 3, H, W] -> float[B, P, D].

    A plain patch embedding learns shapes far slower at the mini encoder's size. Takes the arguments of timm's
    `embed_layer`; timm reads `num_patches` and `grid_size`.
    """

    def __init__(self, img_size: int = 64, patch_size: int = MINI_PATCH_SIZE, in_chans: int = 3,
                 embed_dim: int = MINI_WIDTH, bias: bool = True, dynamic_img_pad: bool = False,
                 device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if patch_size != MINI_PATCH_SIZE or dynamic_img_pad or img_size % patch_size:
            raise ValueError(f"ConvStem takes {MINI_PATCH_SIZE}-pixel patches, and sides that are a multiple of that")
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((in_chans, 32), (32, 64), (64, 96)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, device=device, dtype=dtype),
                       nn.GroupNorm(8, channels_out, device=device, dtype=dtype), nn.GELU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(96, embed_dim, 1, bias=bias, device=device, dtype=dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Patches in reading order: float[B, 3, H, W] -> float[B, P, D]."""
        return self.proj(self.stem(image)).flatten(2).transpose(1, 2)


def mini_vit(image_size: int = 64) -> VisionTransformer:
    """The embedded default's encoder: a ViT of 0.9M parameters for 64-pixel images, with random weights.

    `model.forward_features(image float[B, 3, S, S])` gives float[B, 1 + (S / 8)^2, 128] after the final norm: the class
    token, then the patches in reading order. The packaged weights (assets/mini/vit.safetensors, fp16) are for 64 pixels
    and images normalised as CLIP's are.
    """
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=image_size, patch_size=MINI_PATCH_SIZE, num_classes=0, embed_dim=MINI_WIDTH,
                             depth=MINI_DEPTH, num_heads=MINI_HEADS, embed_layer=ConvStem)


def resize_pos_embed(table: torch.Tensor, grid: int, prefix: int, align_corners: bool) -> torch.Tensor:
    """float[1, prefix + g*g, D] -> float[1, prefix + grid*grid, D], bicubic; EVA does not align corners, CLIP does.

    The `prefix` leading entries belong to no patch and stay as they are.
    """
    first, patches = table[:, :prefix], table[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return table
    image = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=align_corners)
    return torch.cat([first, image.flatten(2).mT.to(table.dtype)], dim=1)
