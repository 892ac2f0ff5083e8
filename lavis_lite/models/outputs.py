"""What models return."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class ModelOutput:
    """Base of all training outputs: `loss` is what backward starts from, `loss_*` are its logged parts."""

    loss: Tensor

    def losses(self) -> dict[str, Tensor]:
        """All scalar losses by name, detached."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name.startswith("loss")}
        return {name: value.detach() for name, value in found.items() if value is not None}


@dataclass
class Blip2Output(ModelOutput):
    """Stage 1: the sum and its three parts (BLIP-2 section 3.2), float[] each."""

    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_lm: Tensor | None = None


@dataclass
class Blip2Features:
    """Result of extract_features; absent modes are None (D: Q-Former width, E: embed_dim, L: text length).

    image_embeds float[B,Q,D], image_embeds_proj float[B,Q,E] (unit length), text_embeds float[B,L,D],
    text_embeds_proj float[B,L,E] (unit length), multimodal_embeds float[B,Q,D].
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None
