"""Re-ranking by ITM: the best k of each query, both ways, every pair scored once (BLIP-2 section 4.4).

A rank scores the pairs of its own images, image by image. Keys and values of the image are computed once, its texts
are stacked by length. Memory holds the rank's own image features (in the vision encoder's dtype, on the CPU), one
image's keys and values, one pass of pairs, and one float per pair.

N images, M texts, P patches, Dv width of the image features, k candidates per query.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.finite import check_finite
from lavis_lite.models.base import at_least_float32
from lavis_lite.models.protocols import ImageCachingMatcher, Matcher, Retriever
from lavis_lite.registry import need
from lavis_lite.tasks.base import ProgressHandle
from lavis_lite.tasks.retrieval_parts import (
    BothWays,
    Candidates,
    OwnImages,
    Sizes,
    Texts,
    best,
    by_index,
    trimmed,
)


@torch.no_grad()
def rerank(model: Retriever, own: OwnImages, texts: Texts, itc: BothWays, k_test: int, sizes: Sizes,
           progress: ProgressHandle | None = None) -> BothWays:
    """Re-order the first `k_test` candidates of each query by ITM logit + ITC cosine, as LAVIS does. Collective.

    Candidates beyond `k_test` are not scored: they keep their ITC order and stay below. A pair of both directions is
    computed once.

    Args:
        model: also a `Matcher`, or a matcher that caches.
        own: this rank's images, with `embeds`.
        texts: all texts.
        itc: candidates by ITC, equal on all ranks.
        k_test: candidates per query to score, at most all of them. 0: no change.
        sizes: pairs per pass.
        progress: keeps finished images, and knows after each image if a stop was requested; all ranks then stop
            together.
    """
    if k_test <= 0:
        return itc
    progress = progress or ProgressHandle()
    wanted = _pairs(itc, k_test, len(texts.ids))
    mine = wanted[torch.isin(wanted // len(texts.ids), own.indices)]
    progress.begin("re-ranking", len(itc.texts_of_image.index), "images")
    logits = _score_pairs(model, own, texts, mine, sizes, progress)
    progress.stop_if_requested()
    parts = distributed.all_gather_object((mine, logits))
    keys, values = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    order = keys.argsort()
    keys, values = keys[order], values[order]
    if not torch.equal(keys, wanted):
        raise ValueError(f"{len(keys)} of {len(wanted)} pairs were scored; the ranks disagree about the candidates")
    found = [values[torch.searchsorted(keys, asked)] for asked in _asked(itc, k_test, len(texts.ids))]
    return BothWays(_reordered(itc.texts_of_image, found[0]), _reordered(itc.images_of_text, found[1]))


def _asked(itc: BothWays, k_test: int, texts: int) -> tuple[Tensor, Tensor]:
    """The pairs of each direction, as image * M + text: int64[N,k] and int64[M,k]."""
    by_image, by_text = itc.texts_of_image.index[:, :k_test], itc.images_of_text.index[:, :k_test]
    return (torch.arange(len(by_image))[:, None] * texts + by_image,
            by_text * texts + torch.arange(len(by_text))[:, None])


def _pairs(itc: BothWays, k_test: int, texts: int) -> Tensor:
    """All pairs to score, each once, ascending: int64[pairs]."""
    by_image, by_text = _asked(itc, k_test, texts)
    return torch.cat([by_image.flatten(), by_text.flatten()]).unique()


def _score_pairs(model: Retriever, own: OwnImages, texts: Texts, pairs: Tensor, sizes: Sizes,
                 progress: ProgressHandle) -> Tensor:
    """Match logits of ascending pairs of own images: at least float32[pairs], on the CPU.

    Works image by image, its texts stacked by length. So a pass reads one image's features, pads little, and does not
    depend on the rank's other images. A request to stop ends it early.
    """
    if own.embeds is None:
        raise ValueError("re-ranking needs the image features; they were not kept for this split")
    parts, start, match = [torch.empty(0)], 0, _Matcher(model, texts, sizes)
    for embeds, index in zip(own.embeds, own.indices.tolist(), strict=True):
        end = int(torch.searchsorted(pairs, (index + 1) * len(texts.ids)))
        rows = pairs[start:end] - index * len(texts.ids)
        if progress.stop_requested():
            break
        if len(rows):
            logits = _known_or(partial(match, embeds, rows), index, rows, progress)
            parts.append(check_finite(logits, partial(_pair, index, rows)))
        progress.advance()
        start = end
    return torch.cat(parts)


def _pair(image: int, texts: Tensor, row: int) -> str:
    return (f"retrieval: the match logits of image {image} with text {int(texts[row])} of the gallery are NaN or "
            "infinite.")


def _known_or(score: Callable[[], Tensor], index: int, rows: Tensor, progress: ProgressHandle) -> Tensor:
    """The stored logits of an image if they are for the same texts; else new ones, which are stored."""
    key, asked = f"match {index}", hashlib.blake2b(rows.numpy().tobytes(), digest_size=8).hexdigest()
    kept = progress.load(key)
    if kept is not None and kept["texts"] == asked:
        return torch.frombuffer(bytearray(base64.b64decode(kept["logits"])), dtype=getattr(torch, kept["dtype"]))
    logits = score()
    progress.save(key, {"texts": asked, "dtype": str(logits.dtype).removeprefix("torch."),
                        "logits": base64.b64encode(logits.numpy().tobytes()).decode()})
    return logits


class _Matcher:
    """Match logits of images with texts, by the cheapest method that the model has.

    Args:
        model: also a `Matcher`. An `ImageCachingMatcher` computes an image's keys and values once for all its texts.
        texts: of the gallery.
        sizes: pairs per pass.
    """

    def __init__(self, model: Retriever, texts: Texts, sizes: Sizes) -> None:
        self.model, self.texts, self.sizes = model, texts, sizes
        self.lengths = texts.mask.sum(1)

    def __call__(self, embeds: Tensor, rows: Tensor) -> Tensor:
        """One image (float[P,Dv]) with the texts `rows`: at least float32[len(rows)], on the CPU."""
        order = torch.argsort(self.lengths[rows], stable=True)
        match = self._of_image(embeds[None].to(self.model.device))
        parts = []
        for batch in order.split(_runs(self.lengths[rows[order]].tolist(), self.sizes)):
            parts.append(at_least_float32(match(rows[batch])).cpu())
        return torch.cat(parts)[torch.argsort(order)]

    def _of_image(self, image: Tensor) -> Callable[[Tensor], Tensor]:
        """Texts int64[T] -> logits float[T] with one image float[1,P,Dv]."""
        model: object = self.model
        if not isinstance(model, ImageCachingMatcher):
            matcher = need(model, Matcher, "re-ranking")
            return lambda rows: matcher.compute_itm(image.expand(len(rows), -1, -1), *self._tokens(rows))
        keys_values = model.image_kv(image)
        return lambda rows: model.match_logits(
            keys_values.repeated(len(rows)), self.texts.tokens(*self._tokens(rows)))[:, 1]

    def _tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return trimmed(self.texts.ids[rows], self.texts.mask[rows], self.model.device)


def _runs(lengths: Sequence[int], sizes: Sizes) -> list[int]:
    """Number of pairs in each pass, by ascending text length: a pass ends early if the next text is longer.

    Padding costs as much as text, but a pass of few pairs is slow.
    """
    runs, start = [], 0
    for end in range(1, len(lengths) + 1):
        count = end - start
        longer = end < len(lengths) and lengths[end] > lengths[end - 1] and count >= sizes.pair_batch_least
        if end == len(lengths) or count == sizes.pair_batch or longer:
            runs.append(count)
            start = end
    return runs


def _reordered(itc: Candidates, logits: Tensor) -> Candidates:
    """The first columns re-ordered by logit + cosine, then the others unchanged."""
    scored = logits.shape[1]
    front = best(*by_index(itc.index[:, :scored], logits + itc.score[:, :scored]), scored)
    return Candidates(torch.cat([front.index, itc.index[:, scored:]], 1),
                      torch.cat([front.score, itc.score[:, scored:]], 1))
