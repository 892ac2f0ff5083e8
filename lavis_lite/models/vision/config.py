"""The vision encoders known by name, whether a choice can be built, and the keys of a `model` section about them.

Imports no torch for an encoder of the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from lavis_lite.config.schema import ModelConfig, RunConfig
from lavis_lite.config.typed import check_arguments
from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.registry import registry
from lavis_lite.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from torch import nn

TIMM_MODULES = ["vision_transformer", "deit", "eva"]
"""timm's modules whose models are plain ViTs: patches, prefix tokens, a list of equal blocks."""


@dataclass(frozen=True)
class ViTShape:
    """Dimensions of a ViT; `depth` counts its blocks without the last one."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_size: int
    """pixels per side"""
    norm_eps: float = 1e-6
    """added to the variance in every norm"""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"vision encoder: width {self.width} is not a multiple of {self.heads} heads.")


@dataclass(frozen=True)
class Preset:
    """One row of the table below.

    Attributes:
        kind: the family, which decides the builder: "eva" or "clip".
        shape: dimensions, each of which a caller may override.
        align_corners: how position embeddings are interpolated to another resolution (as LAVIS does per family).
    """

    kind: str
    shape: ViTShape
    align_corners: bool


PRESETS = {
    # EVA-CLIP's ViT-g/14 has 40 blocks, CLIP's ViT-L/14 has 24; the last one is not run
    "eva_clip_g": Preset("eva", ViTShape(1408, 39, 16, 4.3637, 14), align_corners=False),
    "clip_L": Preset("clip", ViTShape(1024, 23, 16, 4.0, 14, 1e-5), align_corners=True),
}

MINI = "mini"
"""The embedded default: 64-pixel images, weights in the package."""
MINI_PATCH_SIZE = 8
"""pixels per side"""
SIZES = ("depth", "width", "heads", "mlp_ratio", "patch_size", "norm_eps")
"""dimensions of an encoder that a caller may override, and the epsilon of its norms"""

MINI_DEPTH = 4
"""its blocks"""
Layer = int | Sequence[int] | None
"""`model.vit_layer`: which layers give the features"""
How = Literal["frozen", "full", "last", "lora"]
TRAINING = ("frozen", "full", "last_2", "lora")


def training_of(train: str | None, frozen: bool | None = None) -> tuple[How | None, int]:
    """What `model.vit_train` asks for, and the N of last_N; without it, what `frozen` says (None: nothing yet).

    Raises:
        ConfigError: another word.
    """
    if train is None:
        return (None if frozen is None else "frozen" if frozen else "full"), 0
    if train in ("frozen", "full", "lora"):
        return train, 0  # type: ignore[return-value]  # one of How
    match = re.fullmatch(r"last_([1-9]\d*)", train)
    if match is None:
        raise ConfigError(f"model.vit_train: {train!r} is not frozen, full, last_N (the last N blocks) or lora; "
                          f"{did_you_mean(train, TRAINING)}")
    return "last", int(match[1])


def chosen_layers(name: str, layer: Layer, total: int) -> list[int]:
    """After how many blocks features are taken, in the given order; `total` includes the final norm.

    Args:
        name: of the encoder.
        layer: 1 to `total`, or from the end: -1 the last with the final norm, -2 the one before without it (as BLIP-2
            and LLaVA read it). A list joins several along the channels. None: -2, and -1 of the embedded default.
        total: blocks of the whole ViT.

    Raises:
        ConfigError: no such layer.
    """
    if layer is None:
        layer = -1 if name == MINI else -2
    wanted = [layer] if isinstance(layer, int) else list(layer)
    found = [number if number > 0 else total + 1 + number for number in wanted]
    wrong = [number for number, at in zip(wanted, found, strict=True) if not 1 <= at <= total or number == 0]
    if wrong or not found:
        given = f"{wrong[0]} is not a layer" if wrong else "an empty list names no layer"
        raise ConfigError(f"model.vit_layer: {given} of {name!r}; it has {total}: 1 to {total}, or -1 (the last) to "
                          f"-{total}.")
    return found


def override(shape: ViTShape, changes: dict[str, Any]) -> ViTShape:
    """The shape with every change that is not None."""
    return replace(shape, **{name: value for name, value in changes.items() if value is not None})


def check_image_size(name: str, image_size: int, patch_size: int) -> None:
    """Raise ConfigError unless the image divides into whole patches."""
    if image_size < patch_size or image_size % patch_size:
        near = max(round(image_size / patch_size), 1) * patch_size
        raise ConfigError(f"model.image_size: {image_size} pixels are not a whole number of {name}'s "
                          f"{patch_size}-pixel patches; the nearest is {near}.")


def check_mini(image_size: int, sizes: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the embedded default has these sizes."""
    if any(value is not None for value in sizes.values()):
        raise ConfigError("model.vit_args: the dimensions of 'mini' are fixed; only image_size can change.")
    check_image_size(MINI, image_size, MINI_PATCH_SIZE)


def check_timm_name(name: str) -> None:
    """Raise ConfigError unless `name` is a plain ViT of timm; nothing is built."""
    ensure_torchvision()
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        of_timm = [name for module in ("vision_transformer", "eva") for name in timm.list_models(module=module)]
        names = [*PRESETS, MINI, *registry.encoder.names(), *of_timm]
        raise ConfigError(f"model.vit_model: unknown vision encoder {name!r}: {did_you_mean(name, names)}")
    if not timm.models.is_model_in_modules(architecture, TIMM_MODULES):
        raise ConfigError(f"model.vit_model: timm's {name!r} is not a plain ViT (patch tokens through equal blocks). "
                          f"Take one of {', '.join(PRESETS)} or a name from timm.list_models('vit_*').")


def timm_repository(name: str) -> str:
    """The repository with the weights of a name of timm: one serves both activations of CLIP's ViTs."""
    return f"timm/{name.replace('_quickgelu', '')}"


def timm_notes(name: str, normalised: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Iterator[str]:
    """Sentences on what a timm model's weights were trained with and would not get here.

    Args:
        name: of timm; of others nothing is known.
        normalised: who gives pictures -> the mean and the standard deviation of each channel that they are brought to.
    """
    if name in (*PRESETS, MINI) or name in registry.encoder.names():
        return
    ensure_torchvision()
    import timm

    try:
        facts = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # no such weights
        facts = None
    if facts is None:
        return
    twin = name.replace("_clip_", "_clip_quickgelu_")
    if "quickgelu" not in name and any("QuickGELU" in str(note) for note in facts.notes or ()) and timm.is_model(
            twin.split(".")[0]):
        yield f"model.vit_model: {name} computes GELU, and its weights were trained with QuickGELU: {twin}."
    for who, found in normalised.items():
        if tuple(map(tuple, found)) != (tuple(facts.mean), tuple(facts.std)):
            yield (f"{who}: pictures get mean {list(found[0])} and std {list(found[1])}. {name} was trained with mean "
                   f"{list(facts.mean)} and std {list(facts.std)}: set mean and std there.")


def build_timm(name: str, image_size: int, drop_path_rate: float, changes: dict[str, Any], pretrained: bool,
               layer: Layer = None) -> tuple[nn.Module, list[int], int]:
    """Any ViT of timm by its name (`vit_base_patch16_224.augreg_in21k`), cut after the last layer that is read.

    Returns:
        The ViT, what `chosen_layers` says, and how many blocks it had.

    Raises:
        ConfigError: unknown to timm (nearest names are given), not a plain ViT, without a given image size or layer.
    """
    check_timm_name(name)
    import timm
    import torch

    renamed = {"width": "embed_dim", "heads": "num_heads"}
    arguments = {renamed.get(key, key): value for key, value in changes.items() if value is not None}
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(torch.nn.LayerNorm, eps=arguments.pop("norm_eps"))
    if "depth" in arguments:
        arguments["depth"] += 1  # the caller counts the blocks that run
    vit: Any = timm.create_model(name, pretrained=pretrained, img_size=image_size, num_classes=0,
                            drop_path_rate=drop_path_rate, **arguments)
    blocks = getattr(vit, "blocks", None)
    if blocks is None or len(blocks) < 2:
        raise ConfigError(f"model.vit_model: timm's {name!r} has no list of at least two blocks to read features from.")
    total = len(blocks)
    layers = chosen_layers(name, layer, total)
    cut(vit, max(layers))
    return vit, layers, total


def cut(vit: Any, depth: int) -> None:
    """Drop the head of a ViT of timm, what follows `depth` blocks and, if any block is, the final norm."""
    vit.prune_intermediate_layers([depth - 1], prune_norm=depth < len(vit.blocks), prune_head=True)


def encoder_error(name: str, image_size: int, sizes: Mapping[str, Any], own_weights: bool,
                  layer: Layer = None) -> tuple[str, str] | None:
    """(key of the model section, sentence) of what is wrong with a vision encoder; None if it can be built.

    A preset is compared with its table. A timm model is built on the meta device: without memory or a download.

    Args:
        name: as in `VisionEncoder`.
        image_size: pixels per side.
        sizes: of model.vit_args.
        own_weights: whether timm's own weights are requested.
        layer: as in `chosen_layers`.
    """
    for key in sizes:
        if key not in SIZES:
            return f"vit_args.{key}", f"a vision encoder has no such size; {did_you_mean(key, SIZES)}"
    try:
        if name == MINI:
            check_mini(image_size, sizes)
            chosen_layers(name, layer, MINI_DEPTH)
        elif name in PRESETS:
            shape = override(PRESETS[name].shape, dict(sizes))
            check_image_size(name, image_size, shape.patch_size)
            chosen_layers(name, layer, shape.depth + 1)
        else:
            check_timm_name(name)
            import torch

            with torch.device("meta"):
                built: Any = build_timm(name, image_size, 0.0, dict(sizes), pretrained=False, layer=layer)
            check_image_size(name, image_size, int(built[0].patch_embed.patch_size[0]))
    except ConfigError as error:
        key, _, sentence = str(error).partition(": ")
        return key.removeprefix("model.") if key.startswith("model.") else "vit_args", sentence
    except (ValueError, AssertionError, TypeError, ZeroDivisionError, RuntimeError) as error:  # timm's own
        return "vit_args", f"timm cannot build {name!r} like this: {(str(error) or repr(error)).splitlines()[0]}"
    if own_weights and (name == MINI or name in PRESETS):
        return "vit_weights", f"timm has no weights of {name!r}; name a file, or leave the key out."
    return None


def registered_error(name: str, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """As `encoder_error`, of a registered encoder: it is built on the meta device."""
    kind: Any = registry.encoder.get(name)
    wrong: list[tuple[str, str]] = []
    check_arguments(kind, settings, "vit_args", lambda *error: wrong.append(error))
    if wrong:
        return wrong[0]
    import torch

    try:
        with torch.device("meta"):
            encoder = kind(**settings)
    except (ConfigError, TypeError, ValueError) as error:
        return "vit_args", f"{name!r} cannot be built with {dict(settings)}: {error}"
    width = getattr(encoder, "width", None)
    if type(width) is not int or width < 1:
        return "vit_model", (f"{kind.__name__} must set `width`, the width of its features, to a whole number, not "
                             f"{width!r}.")
    return None


# --- the section ------------------------------------------------------------------------------------------------------
@dataclass
class EncoderConfig(ModelConfig):
    """What the sections of all models with an encoder share: LAVIS' keys, then this package's."""

    vit_model: str = "eva_clip_g"
    """eva_clip_g | clip_L | mini | a plain ViT of timm by its name | features (samples bring them) | a registered
    encoder"""
    image_size: int = 224
    """pixels per side"""
    drop_path_rate: float = 0.0
    """stochastic depth of the vision encoder; 0: none"""
    use_grad_checkpoint: bool | Literal["fairscale"] = False
    """of the vision encoder: false | true | fairscale"""
    vit_precision: Literal["fp16", "fp32", "bf16"] = "fp16"
    """dtype of a frozen vision encoder"""
    freeze_vit: bool = True
    """whether the vision encoder keeps its weights"""
    # this package's -------------------------------------------------------------------------------------------------
    vit_weights: str | None = None
    """file or URL of the vision encoder's weights; None: the preset's own; "timm": timm's download; "random": none"""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """other dimensions for the vision encoder: depth, width, heads, mlp_ratio, patch_size; norm_eps of its norms"""
    vit_layer: Any = None
    """which layer gives the features: from 1, or from the end (-1: the last with its norm, -2: the one before). A list
    joins several along the channels. null: -2, of mini -1"""
    vit_cls: Literal["keep", "drop"] = "keep"
    """class token and registers in front of the patches"""
    vit_train: str | None = None
    """frozen | full | last_N (the last N blocks) | lora; goes before freeze_vit, and null leaves it to that"""

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no weight of the encoder trains."""
        return training_of(self.vit_train, self.freeze_vit)[0] == "frozen"

    def errors(self, run: RunConfig) -> list[tuple[str, str]]:
        """An unknown encoder, sizes and layers that it cannot have, half precision for weights that train."""
        found = [(key, f"must be at least 1, not {self.image_size}.") for key in ("image_size",) if self.image_size < 1]
        if not 0.0 <= self.drop_path_rate < 1.0:
            found.append(("drop_path_rate", f"must be at least 0 and below 1, not {self.drop_path_rate}."))
        if self.use_grad_checkpoint == "fairscale" and find_spec("fairscale") is None:
            found.append(("use_grad_checkpoint", "'fairscale' needs the package fairscale: pip install fairscale, or "
                          "set it to true for torch's own checkpointing."))
        found += self._encoder_training_errors()
        if self.image_size >= 1:
            wrong = self._encoder_error()
            found += [wrong] if wrong else []
        return found

    def _encoder_training_errors(self) -> list[tuple[str, str]]:
        try:
            how, _ = training_of(self.vit_train, self.freeze_vit)
        except ConfigError as error:
            return [("vit_train", str(error).removeprefix("model.vit_train: "))]
        if how != "frozen" and self.vit_precision != "fp32":
            why = "model.freeze_vit is false" if self.vit_train is None else f"model.vit_train is {self.vit_train}"
            return [("vit_precision", f"{self.vit_precision} weights cannot be trained ({why}); use fp32. run.amp=true "
                     "gives half-precision arithmetic.")]
        if how == "lora" and find_spec("peft") is None:
            return [("vit_train", "lora needs peft: pip install 'lavis_lite[lora]'.")]
        return []

    def _encoder_error(self) -> tuple[str, str] | None:
        if self.vit_model in registry.encoder.names():
            return registered_error(self.vit_model, self.vit_args)
        numbers = self.vit_layer if isinstance(self.vit_layer, list) else [self.vit_layer]
        if self.vit_layer is not None and not all(type(number) is int for number in numbers):
            return "vit_layer", f"must be a number or a list of numbers, not {self.vit_layer!r}."
        return encoder_error(self.vit_model, self.image_size, self.vit_args, self.vit_weights == "timm", self.vit_layer)
