"""The encoder of samples that bring features along: `model.vit_model: features`.

Shapes: B samples, P features of each, Dv width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError
from lavis_lite.models.vision.encoder import Encoder
from lavis_lite.registry import registry


@registry.register_encoder("features")
class GivenFeatures(Encoder):
    """The encoder of samples that bring features, float[B,P,Dv], of any encoder that ran elsewhere.

    Features of several streams follow each other at fixed places. A learned vector of its stream is added to each.

    Args:
        width: Dv.
        streams: name -> features of each sample, padding included, in the data set's order; None: one stream.

    Raises:
        ConfigError: sizes that are not positive numbers.
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
