"""What turns a sample's raw input into features, and the encoder of samples that bring their features along.

Shapes: B samples, P features of each, Dv width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError

FEATURES = "features"
"""value of model.vit_model: samples bring features, no encoder runs"""


class Encoder(nn.Module):
    """Base class of encoders: raw input of any kind -> float[B,P,Dv], or fewer features with rows of NaN behind them.

    A subclass is built with the keys of `model.vit_args` and registers: `@registry.register_encoder("name")` makes it a
    `model.vit_model`. A data set brings its input under `image`; see `arrays` of data set sections.

    Attributes:
        width: Dv.
        input_shape: of one sample, None where any size goes; for messages and for `example_input`.
        pads: whether features may end in rows of NaN.
    """

    width: int
    input_shape: tuple[int | None, ...] = (3, None, None)
    pads = False
    image_size = 64
    """what stands for None in `input_shape` in a dry run"""

    def check_input(self, image: Tensor) -> None:
        """Check the shape of a batch.

        Raises:
            DataError: it has another shape than the encoder takes.
        """
        wanted = self.input_shape
        fits = image.ndim == len(wanted) + 1 and all(size in (None, own) for size, own in
                                                     zip(wanted, image.shape[1:], strict=False))
        if not fits:
            shape = ", ".join("any" if size is None else str(size) for size in wanted)
            raise DataError(f"{type(self).__name__} takes input of shape (B, {shape}), not {tuple(image.shape)}.")

    def example_input(self, batch: int, device: torch.device) -> Tensor:
        """Input of the right shape without content, for a dry run."""
        return torch.zeros(batch, *(size or self.image_size for size in self.input_shape), device=device)

    def layer_scale(self, name: str, decay: float) -> float:
        """Learning-rate factor of a parameter with layer-wise decay; 1 without layers."""
        return 1.0


class GivenFeatures(Encoder):
    """The encoder of samples that bring features, float[B,P,Dv], of any encoder that ran elsewhere.

    Features of several streams follow each other at fixed places. A learned vector of its stream is added to each.

    Args:
        width: Dv.
        streams: name -> features of each sample, padding included, in the data set's order; None: one stream.

    Raises:
        ConfigError: sizes that are no positive numbers.
    """

    pads = True

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

