"""Re-ranking by ITM against the loop over queries that LAVIS runs.

The gallery has 5 captions per image. The plain side scores an image and a text as queries, this package one image
with all its pairs. Seconds are scaled to the whole gallery. Image features are random, and ITC ranks an image's own
captions first. First both sides rank a small gallery in float64, and scores and ranks are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lavis_lite.bench.options import Options
from lavis_lite.bench.sizes import random_rows
from lavis_lite.bench.timing import Case, Side
from lavis_lite.bench.twins.rerank import PlainRerank
from lavis_lite.checkpoints.weights import assets
from lavis_lite.errors import LavisLiteError
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.tasks import retrieval_reranking
from lavis_lite.tasks.retrieval_parts import BothWays, Gallery, OwnImages, Sizes, Texts
from lavis_lite.tasks.retrieval_scoring import _similarity, itc_candidates

CAPTIONS, TEXT_WIDTH = 5, 35
TOLERANCE = 1e-9
"""largest difference of a score in float64"""


@dataclass(frozen=True)
class Shape:
    """Of a gallery: images, candidates per query, tokens of an image, and how many different images are held."""

    images: int
    k: int
    patches: int
    qformer: QFormerConfig
    kept: int = 160
    pair_batch: int = 256


def shapes(options: Options) -> list[Shape]:
    """The galleries of a size: Flickr30K's 1,000 images at k = 128, except for mini."""
    qformer = options.dimensions.qformer
    if options.size == "mini":
        return [Shape(12, 6, 5, qformer, kept=8, pair_batch=16)]
    if options.size == "vitg":
        return [Shape(1000, 128, 257, qformer)]
    wide = replace(qformer, num_queries=32, vision_width=704)  # to the Q-Former's width as ViT-g's 1408 is to 768
    return [Shape(1000, 128, 257, wide), Shape(1000, 128, 65, replace(qformer, num_queries=32))]


class _NoEncoder(nn.Module):
    """Stands in for the vision encoder, since its features are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.frozen = width, True


class Setting:
    """A gallery, its ITC candidates, and both ways to re-rank them.

    Args:
        shape: of the gallery.
        dtype: of weights and features.
        device: of the model.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.sizes = shape, Sizes(pair_batch=shape.pair_batch)
        self.generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = Blip2Qformer(_NoEncoder(shape.qformer.vision_width), QFormer(shape.qformer),
                                  TextTokenizer(str(assets() / "tokenizer"), TEXT_WIDTH)).to(device, dtype).eval()
        _make_unlike(self.model)
        self.features = self._random(min(shape.images, shape.kept), shape.patches,
                                     shape.qformer.vision_width).to(dtype)
        looks = functional.normalize(self._random(shape.images, 4, 32), dim=-1)
        self.texts, self.gallery = self._texts(looks, device), self._gallery()
        self.own = OwnImages(torch.arange(shape.images), looks,
                             [self.features[image % len(self.features)] for image in range(shape.images)])
        self.itc = itc_candidates(self.own, self.texts, self.gallery, shape.k, self.sizes, device)
        self.matcher = retrieval_reranking._Matcher(self.model, self.texts, self.sizes)
        self.pairs = retrieval_reranking._pairs(self.itc, shape.k, self.count)

    @property
    def count(self) -> int:
        """M, the number of texts."""
        return self.shape.images * CAPTIONS

    @cached_property
    def plain(self) -> PlainRerank:
        """The loop over queries."""
        cosine = _similarity(self.own, self.texts.features, self.sizes)
        wide = TextTokens(self.texts.ids, self.texts.mask).padded(TEXT_WIDTH, 0)
        return PlainRerank(self.model, self.features, wide.ids, wide.mask, cosine, self.shape.k)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _texts(self, looks: Tensor, device: torch.device) -> Texts:
        """Captions of 8 to 17 tokens that ITC finds similar to their image."""
        lengths = (self._random(self.count) * 2.5 + 12.5).round().clamp(8, 17).long().tolist()
        tokens = TextTokens.from_lists(random_rows(lengths, 900, self.generator), 0, TEXT_WIDTH)
        words = looks[:, 0].repeat_interleave(CAPTIONS, 0) + self._random(self.count, 32) * 0.25
        return Texts(tokens.ids, tokens.mask, functional.normalize(words, dim=-1), TextTokens)

    def _gallery(self) -> Gallery:
        images = range(self.shape.images)
        return Gallery(list(images), [""] * self.count,
                       [list(range(CAPTIONS * image, CAPTIONS * (image + 1))) for image in images],
                       [[image] for image in images for _ in range(CAPTIONS)])

    def pairs_of(self, image: int) -> Tensor:
        """The texts that are scored with an image, both directions together."""
        return self.pairs[self.pairs // self.count == image] - image * self.count

    def typical(self, number: int) -> int:
        """The image with the `number`-th most usual number of pairs."""
        counts = torch.bincount(self.pairs // self.count, minlength=self.shape.images)
        return int((counts - counts.float().mean()).abs().argsort()[number % self.shape.images])

    @torch.no_grad()
    def ours(self) -> BothWays:
        """Everything, by the package."""
        return retrieval_reranking.rerank(self.model, self.own, self.texts, self.itc, self.shape.k, self.sizes)

    @torch.no_grad()
    def plain_part(self, image: int) -> None:
        """An image and a text, as queries of the plain loop."""
        self.plain.texts_of(image)
        self.plain.images_of(image * CAPTIONS)

    @torch.no_grad()
    def ours_of(self, image: int) -> Tensor:
        """One image's pairs, by the package."""
        assert self.own.embeds is not None
        return self.matcher(self.own.embeds[image], self.pairs_of(image))

    def plain_scale(self, image: int) -> float:
        """The gallery's pairs, both directions, per pair of `plain_part`."""
        texts, images = min(self.shape.k, self.count), min(self.shape.k, self.shape.images)
        return (self.shape.images * texts + self.count * images) / (texts + images)

    def our_scale(self, image: int) -> float:
        """The gallery's different pairs per pair of `ours_of`."""
        return len(self.pairs) / len(self.pairs_of(image))


def case(options: Options, device: torch.device, seed: int) -> list[Case]:
    """The comparisons, one for each gallery."""
    return [_compared(options, shape, device) for shape in shapes(options)]


def _compared(options: Options, shape: Shape, device: torch.device) -> Case:
    settings: list[Setting] = []

    def setting() -> Setting:
        if not settings:
            settings.append(Setting(shape, torch.float32, device))
        return settings[0]

    def ours() -> Side:
        found = setting()
        return Side(found.ours_of, found.our_scale)

    def plain() -> Side:
        found = setting()
        return Side(found.plain_part, found.plain_scale)

    name = f"re-ranking, {options.size}, {shape.images} images of {shape.patches} x {shape.qformer.vision_width}"
    return Case(name, {"ours": ours, "plain": plain}, lambda number: setting().typical(number), shape.images,
                check=partial(_check, shape, device))


def _check(shape: Shape, device: torch.device, sides: Mapping[str, Side]) -> None:
    """Compare both ways on a small gallery.

    Raises:
        LavisLiteError: a score or a rank differs.
    """
    found = compare(replace(shape, images=8, k=6, kept=8), torch.float64, device)
    if found["largest difference"] > TOLERANCE or not found["ranks equal"]:
        raise LavisLiteError(f"re-ranking differs from the plain loop's: {found}; nothing was timed.")


def compare(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Both ways on a whole gallery: largest difference of a score, whether all ranks are equal, spread of scores."""
    setting = Setting(shape, dtype, device)
    by_image, by_text = setting.plain.matrices(range(shape.images), range(setting.count))
    found, worst, equal = setting.ours(), 0.0, True
    for side, matrix in ((found.texts_of_image, by_image), (found.images_of_text, by_text)):
        index, score = side.index[:, :shape.k], side.score[:, :shape.k]
        worst = max(worst, float((matrix.gather(1, index) - score).abs().max()))
        equal = equal and torch.equal(index, matrix.argsort(dim=1, descending=True, stable=True)[:, :shape.k])
    return {"largest difference": worst, "ranks equal": equal, "spread": float(by_image[by_image > -99].std())}


def _make_unlike(model: nn.Module) -> None:
    """Weights with which pairs score differently (those of a fresh model are so small that all are alike)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
