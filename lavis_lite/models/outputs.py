"""What models take and return.

Samples are dicts with LAVIS' keys, typed for editors and type checkers. Outputs are dataclasses that also answer like
LAVIS' outputs, `out["loss"]`, `out.get("loss_itm")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypedDict, TypeVar

from torch import Tensor

from lavis_lite.errors import ContractError

Text = str | Sequence[str]
"""one text for all images, or one for each"""


class Samples(TypedDict, total=False):
    """What `forward`, `generate`, `predict_answers` and the others take; each method names the keys that it reads.

    Axes: B samples, T frames, U different images of a batch.
    """

    image: Tensor
    """float[B,3,H,W]; several per sample float[B,3,T,H,W]; features of a frozen encoder float[B,P,Dv]"""
    video: Tensor
    """float[B,3,T,H,W]"""
    image_rows: Tensor
    """int64[B], the image of each sample, if samples share images: image is then float[U,3,H,W]"""
    text_input: Text
    """captions or questions"""
    text_output: Text
    """what is learned after text_input"""
    prompt: Text
    """what the language model continues"""
    image_id: Any
    """int64[B], or numbers or names; samples with equal ids are not each other's negatives"""
    question_id: Any
    index: Tensor
    """int64[B], the samples' indices in their data set"""
    instance_id: Sequence[str]
    choices: Sequence[Sequence[str]]
    candidates: Sequence[Sequence[str]]
    ocr_tokens: Sequence[Sequence[str]]
    context: Sequence[str]
    history: Sequence[str]
    caption: Sequence[str]
    few_shot_samples: Any
    """examples in front of the prompts: {text_input, text_output}, for all or one for each"""
    uniform: Tensor
    """float64[B,2] in [0, 1), random numbers of the objectives"""
    loss_weights: dict[str, Tensor]
    """loss name -> float[], see `lavis_lite.models.base.loss_weight`"""


SamplesLike = Samples | dict[str, Any]


Out = TypeVar("Out", bound="ModelOutput")


class Output(Mapping[str, Tensor]):
    """A dataclass of tensors that is a mapping too: its keys are the names of the fields that are not None."""

    def __getitem__(self, key: str) -> Tensor:
        value = getattr(self, key, None) if key in self._names() else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names() if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _names(self) -> list[str]:
        return [field.name for field in fields(self)]  # type: ignore[arg-type]


@dataclass(eq=False)
class ModelOutput(Output):
    """Base of all training outputs: `loss` is what backward starts from, `loss_*` are its logged parts."""

    loss: Tensor
    _added: ClassVar[tuple[str, ...]] = ()

    def plus(self: Out, losses: Mapping[str, Tensor]) -> Out:
        """The same output with further losses, name -> float[]: added to `loss`, and logged as `loss_<name>`."""
        for name, value in losses.items():
            self.loss = self.loss + value
            setattr(self, f"loss_{name}", value)
        self._added = tuple(f"loss_{name}" for name in losses)  # type: ignore[misc]
        return self

    def _names(self) -> list[str]:
        return [*super()._names(), *self._added]

    def losses(self) -> dict[str, Tensor]:
        """All scalar losses by name, detached."""
        return {name: value.detach() for name, value in self.items() if name.startswith("loss")}


@dataclass(eq=False)
class Blip2Output(ModelOutput):
    """Stage 1: the sum and its three parts (BLIP-2 section 3.2), float[] each."""

    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_lm: Tensor | None = None


@dataclass(eq=False)
class Blip2Features(Output):
    """Result of extract_features; absent modes are None (D: Q-Former width, E: embed_dim, L: text length).

    image_embeds float[B,Q,D], image_embeds_proj float[B,Q,E] (unit length), text_embeds float[B,L,D],
    text_embeds_proj float[B,L,E] (unit length), multimodal_embeds float[B,Q,D].
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


def split_losses(output: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss that backward starts from, and all losses by name, detached.

    Args:
        output: what a model returned: a mapping with "loss" (a plain dict, a transformers output), or an object with
            the attribute `loss`.

    Returns:
        `loss` float[], and every entry whose name begins with "loss", itself among them.

    Raises:
        ContractError: the output has no loss.
    """
    losses = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    if not isinstance(losses.get("loss"), Tensor):
        raise ContractError(f"the model returned {type(output).__name__} without a loss; a training forward returns "
                            "lavis_lite.models.outputs.ModelOutput(loss=...), or a dict with the key 'loss'.")
    return losses["loss"], {name: value.detach() for name, value in losses.items()
                            if name.startswith("loss") and isinstance(value, Tensor)}
