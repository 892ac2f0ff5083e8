"""Captioners: models of the zoo that sample several captions per image, from one random stream per image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from lavis_lite.errors import ConfigError
from lavis_lite.models import protocols
from lavis_lite.models.base import BaseModel, weights_hash
from lavis_lite.models.language.contract import language_model_of


class Captioner(Protocol):
    """Writes captions of pictures."""

    name: str
    """identifies a captioner and its settings"""

    def write(self, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[str]]:
        """Captions of each picture, determined by the picture and its seed."""


@dataclass(frozen=True)
class Sampling:
    """How captions are sampled.

    Attributes:
        captions: of an image. top_p: share of the probability that tokens are drawn from.
        temperature: above 1 more varied, below 1 less. max_new_tokens, min_new_tokens: lengths, the end included.
        prompt: beginning of the captions; None: the model's own.
    """

    captions: int = 10
    top_p: float = 0.9
    temperature: float = 1.0
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    prompt: str | None = None


class ZooCaptioner:
    """A model with a language model, such as blip2_opt.

    Args:
        name: identifies it, with a hash of its weights: arch, type, checkpoint.
        model: in eval mode, on its device.
        processor: image -> tensor.
        sampling: how captions are sampled.

    Raises:
        ConfigError: the model writes no captions, or only one per image; or the sampling settings are impossible.
    """

    def __init__(self, name: str, model: BaseModel, processor: Callable[[Any], torch.Tensor],
                 sampling: Sampling) -> None:
        from lavis_lite.models.decoding import Decoding

        if language_model_of(model) is None or not isinstance(model, protocols.Captioner):
            raise ConfigError(f"--captioner {name}: needs a model that samples several captions per image, such as "
                              "blip2_opt, blip2_t5 or blip2_vicuna_instruct.")
        self.name = f"{name} {sampling} {weights_hash(model)}"
        self.model, self.processor, self.sampling = model, processor, sampling
        self._generate: Callable[..., list[str]] = model.generate
        Decoding(**self._settings(), num_beams=1, sample=True)

    def _settings(self) -> dict[str, Any]:
        how = self.sampling
        return {"num_captions": how.captions, "top_p": how.top_p, "temperature": how.temperature,
                "max_new_tokens": how.max_new_tokens, "min_new_tokens": how.min_new_tokens}

    @torch.inference_mode()
    def write(self, pictures: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[str]]:
        """`sampling.captions` captions of each picture."""
        images = torch.stack([self.processor(picture) for picture in pictures]).to(self.model.device)
        samples: dict[str, Any] = {"image": images}
        if self.sampling.prompt is not None:
            samples["prompt"] = self.sampling.prompt
        texts = self._generate(samples, use_nucleus_sampling=True, seeds=tuple(seeds), **self._settings())
        each = self.sampling.captions
        return [[text.strip() for text in texts[start:start + each]] for start in range(0, len(texts), each)]


def seed_of(seed: int, image: str) -> int:
    """The seed of an image's stream, from its name, so that batches and processes do not change the captions."""
    digest = hashlib.blake2b(f"{seed} {image}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
