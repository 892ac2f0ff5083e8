"""Whether a vision encoder can be built, before it is. Imports no torch for an encoder of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis_lite.errors import ConfigError, did_you_mean
from lavis_lite.models.vision.shapes import (
    MINI,
    MINI_PATCH_SIZE,
    PRESETS,
    SIZES,
    check_image_size,
    check_timm_name,
    override,
)


def encoder_error(name: str, image_size: int, sizes: Mapping[str, Any], own_weights: bool) -> tuple[str, str] | None:
    """(key of the model section, sentence) of what is wrong with a vision encoder; None if it can be built.

    A preset is compared with its table. A timm model is built on the meta device: without memory or a download.

    Args:
        name: as in `VisionEncoder`.
        image_size: pixels per side.
        sizes: of model.vit_args.
        own_weights: whether timm's own weights are requested.
    """
    for key in sizes:
        if key not in SIZES:
            return f"vit_args.{key}", f"a vision encoder has no such size; {did_you_mean(key, SIZES)}"
    try:
        if name == MINI:
            if any(value is not None for value in sizes.values()):
                return "vit_args", "the dimensions of 'mini' are fixed; only image_size can change."
            check_image_size(name, image_size, MINI_PATCH_SIZE)
        elif name in PRESETS:
            check_image_size(name, image_size, override(PRESETS[name].shape, dict(sizes)).patch_size)
        else:
            check_timm_name(name)
            import torch

            from lavis_lite.models.vision.presets import build_timm

            with torch.device("meta"):
                vit: Any = build_timm(name, image_size, 0.0, dict(sizes), pretrained=False)
            check_image_size(name, image_size, int(vit.patch_embed.patch_size[0]))
    except ConfigError as error:
        key, _, sentence = str(error).partition(": ")
        return key.removeprefix("model.") if key.startswith("model.") else "vit_args", sentence
    except (ValueError, AssertionError, TypeError, ZeroDivisionError, RuntimeError) as error:  # timm's own
        return "vit_args", f"timm cannot build {name!r} like this: {(str(error) or repr(error)).splitlines()[0]}"
    if own_weights and (name == MINI or name in PRESETS):
        return "vit_weights", f"timm has no weights of {name!r}; name a file, or leave the key out."
    return None
