"""The encoder of samples that bring features along: `model.vit_model: features`.

Shapes: B samples, P features of each, Dv width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.config.typed import check_arguments
from lavis_lite.errors import ConfigError
from lavis_lite.models.vision.config import FEATURES
from lavis_lite.models.vision.encoder import Encoder
from lavis_lite.registry import registry


class GivenFeatures(Encoder):
    """The encoder of samples that bring features, float[B,P,Dv], of any encoder that ran elsewhere.

    Features of several streams follow each other at fixed places. A learned vector of its stream is added to each.

    Args:
        width: Dv.
        streams: name -> features of each sample, padding included, in the data set's order; None: one stream.

    Raises:
        ConfigError: sizes that are no positive numbers.
    """

    pads = trains = True

    def __init__(self, width: int, streams: Mapping[str, int] | None = None) -> None:
        super().__init__()
        sizes = dict(streams or {})
        for key, size in {"width": width, **sizes}.items():
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"model.vit_args: {key} must be a positive whole number, not {size!r}.")
        self.width, self.sizes = width, sizes
        self.input_shape = (sum(sizes.values()) or None, width)
        self.streams = nn.Parameter(torch.zeros(len(sizes), width)) if len(sizes) > 1 else None
        if self.streams is not None:
            nn.init.normal_(self.streams, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """float[B,P,Dv] -> float[B,P,Dv]; rows of NaN stay such."""
        self.check_input(features)
        if self.streams is None:
            return features
        counts = torch.tensor(list(self.sizes.values()), device=features.device)
        return features + self.streams.repeat_interleave(counts, 0)


def registered_error(name: str, sizes: Mapping[str, Any]) -> tuple[str, str] | None:
    """As `config.encoder_error`, of an encoder that is no ViT: it is built on the meta device."""
    kind: Any = GivenFeatures if name == FEATURES else registry.encoder.get(name)
    wrong: list[tuple[str, str]] = []
    check_arguments(kind, sizes, "vit_args", lambda *error: wrong.append(error))
    if wrong:
        return wrong[0]
    try:
        with torch.device("meta"):
            encoder = kind(**sizes)
    except (ConfigError, TypeError, ValueError) as error:
        return "vit_args", f"{name!r} cannot be built with {dict(sizes)}: {error}"
    width = getattr(encoder, "width", None)
    if type(width) is not int or width < 1:
        return "vit_model", (f"{kind.__name__} must set `width`, the width of its features, to a whole number, not "
                             f"{width!r}.")
    return None
