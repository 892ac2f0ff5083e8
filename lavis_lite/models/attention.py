"""Where a model looks in a picture: attention weights per layer and head, and Grad-CAM.

Fast attention kernels keep no weights. `recorded` computes the same attention with a plain softmax and keeps them.

Axes: W words, N layers and H heads of what writes them, V vectors of the picture (query tokens). These look at P
features of the picture in C layers and H' heads. The last of the features are h x w patches.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lavis_lite.errors import ConfigError, DataError

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Attention:
    """Where the words of one sample and the vectors of its picture look.

    Attributes:
        words: W of them. A word of several tokens has the mean of their weights.
        word_weights: float[N,H,W,V], the share of each word's attention that goes to each vector of the picture. What
            is left of 1 goes to text.
        query_weights: float[C,H',V,P], where each vector looks; sums to 1 over P, or less if vectors also look at each
            other. A connector without attention has one vector for each feature: the identity, C = H' = 1.
        grid: (h, w).
    """

    words: tuple[str, ...]
    word_weights: Array
    query_weights: Array
    grid: tuple[int, int]

    def query_maps(self) -> Array:
        """Where each vector looks, the mean of layers and heads over the patches: float[V,h,w]."""
        return _patches(self.query_weights.mean((0, 1)), self.grid)

    def maps(self) -> Array:
        """Where each word looks through the vectors, the mean of layers and heads: float[W,h,w]."""
        weights = self.word_weights.mean((0, 1))
        weights = weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(weights.dtype).tiny)
        return np.tensordot(weights, self.query_maps(), 1)


@dataclass(frozen=True)
class GradCam:
    """Which features raised a score: attention weights times their positive gradients, the mean over heads.

    Attributes:
        words: W texts: the words; their log-likelihoods are the scores; for matching the text itself, W = 1.
        values: float[W,C,V,P].
        grid: (h, w).
    """

    words: tuple[str, ...]
    values: Array
    grid: tuple[int, int]

    def maps(self, layer: int = -1) -> Array:
        """Where in the picture the scores come from, summed over the vectors, of one layer: float[W,h,w]."""
        return _patches(self.values[:, layer].sum(1), self.grid)


def _patches(weights: Array, grid: tuple[int, int]) -> Array:
    """float[...,P] -> float[...,h,w]; class and register tokens stand before the patches."""
    height, width = grid
    return weights[..., weights.shape[-1] - height * width:].reshape(*weights.shape[:-1], height, width)


# keeping weights ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def recorded(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within it, `attend` of the modules is a plain softmax; yields their weights float[B,H,S,T] in order of calls.

    The model is in eval mode meanwhile. One thread at a time may use it.
    """
    kept: list[Tensor] = []
    training = model.training
    model.eval()
    for module in modules:
        module.attend = functools.partial(_attend, kept)  # type: ignore[assignment]  # shadows the method
    try:
        yield kept
    finally:
        for module in modules:
            del module.attend
        model.train(training)


def _attend(kept: list[Tensor], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """float[B,H,S,d], float[B,H,T,d] twice, mask bool[B,1,S,T] or None -> float[B,S,H*d]."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)
    if torch.is_grad_enabled() and not weights.requires_grad:
        weights.requires_grad_()  # nothing before it trains
    kept.append(weights)
    return (weights @ value).transpose(1, 2).flatten(2)


def looking(model: nn.Module) -> list[nn.Module]:
    """The attention modules of a model that look at image features, in order."""
    return [module for module in model.modules() if getattr(module, "looks_at_features", False)]


def of_features(weights: Tensor, module: nn.Module, features: int) -> Tensor:
    """The columns of image features: float[1,H,S,T] -> float[H,S,P]; some modules look at their queries, too."""
    first = getattr(module, "features_first", True)
    return weights[0, ..., :features] if first else weights[0, ..., -features:]


def grid_of(model: Any) -> tuple[int, int]:
    """Rows and columns of patches of a model's vision encoder.

    Raises:
        ConfigError: its features are not a grid of patches.
    """
    encoder = model.vision_encoder
    patches = getattr(encoder, "num_patches", 0)
    side = math.isqrt(patches)
    if not side or side * side != patches:
        raise ConfigError(f"attention: {type(encoder).__name__} has no square grid of patches to draw a map on.")
    return side, side


def one_picture(image: Tensor) -> Tensor:
    """The images of a batch, if they are not videos.

    Raises:
        DataError: they are.
    """
    if image.ndim == 5:
        raise DataError(f"attention is shown for one picture a sample, not for videos {tuple(image.shape)}; give one "
                        "frame, samples['image'] float[B,3,H,W].")
    return image


# words and their tokens -----------------------------------------------------------------------------------------------
def words_of(ids: Sequence[int], spell: Callable[[Sequence[int]], str]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The words that tokens spell, and the positions of each word's tokens.

    Args:
        ids: of one text.
        spell: ids -> text, special tokens left out.
    """
    words: tuple[str, ...] = tuple(spell(ids).split())
    members: list[list[int]] = [[] for _ in words]
    before = ""
    for position in range(len(ids)):
        text = spell(ids[:position + 1])
        word = min(len(text.split()), len(words)) - 1
        if text != before and word >= 0:  # special tokens spell nothing
            members[word].append(position)
        before = text
    return words, members


def by_word(weights: Tensor, members: Sequence[Sequence[int]]) -> Tensor:
    """Means over each word's tokens: float[...,T,V] -> float[...,W,V]."""
    if not members:
        return weights[..., :0, :]
    return torch.stack([weights[..., list(own), :].mean(-2) for own in members], -2)


def cams(scores: Sequence[Tensor], kept: Sequence[Tensor], modules: Sequence[nn.Module], features: int) -> Array:
    """Grad-CAM of W scores with respect to recorded weights of C modules: float[W,C,V,P].

    That is LAVIS' `compute_gradcam`: weights times gradients that are not negative, averaged over heads.
    """
    found = []
    for score in scores:
        gradients = torch.autograd.grad(score, list(kept), retain_graph=True)
        found.append(torch.stack([
            of_features(weights.detach() * gradient.clamp(min=0), module, features).mean(0)
            for weights, gradient, module in zip(kept, gradients, modules, strict=True)]))
    return array(torch.stack(found)) if found else np.zeros((0, len(kept), *kept[0].shape[2:3], features), np.float32)


def array(tensor: Tensor) -> Array:
    """A tensor as numpy has it; half precision becomes float32."""
    tensor = tensor.detach().cpu()
    return tensor.numpy() if tensor.dtype in (torch.float32, torch.float64) else tensor.float().numpy()


def texts_of(model: Any, samples: Mapping[str, Any], batch: int) -> list[str]:
    """samples["text_output"], one text for each of the batch; without it, what the model writes."""
    texts = samples.get("text_output")
    if texts is None:
        texts = model.generate(samples)
    texts = [texts] * batch if isinstance(texts, str) else list(texts)
    if len(texts) != batch:
        raise ConfigError(f"text_output: {len(texts)} texts for {batch} samples; give one string for all, or one for "
                          "each.")
    return texts


def shown(model: Any, samples: Mapping[str, Any]) -> Sequence[Attention | GradCam]:
    """What a picture of written words shows, one entry for each sample: Grad-CAM, or attention for a model without it.

    Args:
        model: has `attention` and `gradcam`.
        samples: as its `attention` takes them.
    """
    explains = getattr(model, "language_model", None) is not None and bool(looking(model))
    found: Sequence[Attention | GradCam] = (model.gradcam if explains else model.attention)(samples)
    return found
