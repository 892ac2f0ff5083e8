"""Re-ranking by ITM: the best k of each query, both ways, every pair scored once (BLIP-2 section 4.4).

A rank scores the pairs whose image it owns, image by image: keys and values of the image are computed once, its texts
are stacked by length. In memory are the image features that the rank owns (in the vision encoder's dtype, on the CPU),
one image's keys and values, one pass of pairs, and one float per pair.

N images, M texts, P patches, Dv width of the image features, k candidates per query.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.tasks.base import LongWork
from lavis_lite.tasks.retrieval_parts import BothWays, Candidates, OwnImages, Sizes, Texts, best, by_index, trimmed


@torch.no_grad()
def rerank(model: Any, own: OwnImages, texts: Texts, itc: BothWays, k_test: int, sizes: Sizes,
           work: LongWork | None = None) -> BothWays:
    """Re-order the first `k_test` candidates of each query by ITM logit + ITC cosine, as LAVIS does. Collective.

    Candidates beyond `k_test` were not scored: they keep their ITC order and stay below. A pair that both directions
    ask for is computed once.

    Args:
        model: offers `compute_itm(image_inputs float[B,P,Dv], text_ids, text_atts) -> float[B]`, or `image_kv` and
            `match_logits`, by which an image's keys and values are computed once for all its texts.
        own: this rank's images, with `embeds`.
        texts: all texts.
        itc: candidates by ITC, equal on all ranks.
        k_test: candidates per query to score; clipped to what there is. 0: no change.
        sizes: pairs per pass.
        work: keeps finished images, and is asked after each whether to stop; all ranks then stop together.
    """
    if k_test <= 0:
        return itc
    work = work or LongWork()
    wanted = _pairs(itc, k_test, len(texts.ids))
    mine = wanted[torch.isin(wanted // len(texts.ids), own.places)]
    logits = _score_pairs(model, own, texts, mine, sizes, work)
    if code := max(distributed.all_gather_object(work.wish())):
        work.stop(code)
    parts = distributed.all_gather_object((mine, logits))
    keys, values = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    order = keys.argsort()
    keys, values = keys[order], values[order]
    if not torch.equal(keys, wanted):
        raise ValueError(f"{len(keys)} of {len(wanted)} pairs were scored; the ranks disagree about the candidates")
    found = [values[torch.searchsorted(keys, asked)] for asked in _asked(itc, k_test, len(texts.ids))]
    return BothWays(_reordered(itc.texts_of_image, found[0]), _reordered(itc.images_of_text, found[1]))


def _asked(itc: BothWays, k_test: int, texts: int) -> tuple[Tensor, Tensor]:
    """The pairs each direction asks for, as image * M + text: int64[N,k] and int64[M,k]."""
    by_image, by_text = itc.texts_of_image.index[:, :k_test], itc.images_of_text.index[:, :k_test]
    return (torch.arange(len(by_image))[:, None] * texts + by_image,
            by_text * texts + torch.arange(len(by_text))[:, None])


def _pairs(itc: BothWays, k_test: int, texts: int) -> Tensor:
    """All pairs to score, each once, ascending: int64[pairs]."""
    by_image, by_text = _asked(itc, k_test, texts)
    return torch.cat([by_image.flatten(), by_text.flatten()]).unique()


def _score_pairs(model: Any, own: OwnImages, texts: Texts, pairs: Tensor, sizes: Sizes, work: LongWork) -> Tensor:
    """Match logits of ascending pairs of own images: at least float32[pairs], on the CPU.

    Image by image, its texts stacked by length: so a pass reads one image's features, pads little, and is the same
    whatever other images the rank owns. A wish to stop ends it early.
    """
    if own.embeds is None:
        raise ValueError("re-ranking needs the image features; they were not kept for this split")
    parts, start = [torch.empty(0)], 0
    work.begin("re-ranking", len(own.embeds), "images")
    for embeds, place in zip(own.embeds, own.places.tolist(), strict=True):
        end = int(torch.searchsorted(pairs, (place + 1) * len(texts.ids)))
        rows = pairs[start:end] - place * len(texts.ids)
        if work.wish():
            break
        if len(rows):
            parts.append(_known_or(partial(_score_image, model, embeds, texts, rows, sizes), place, rows, work))
        work.advance()
        start = end
    return torch.cat(parts)


def _known_or(score: Callable[[], Tensor], place: int, rows: Tensor, work: LongWork) -> Tensor:
    """An image's logits as they were kept, where they are of the same texts; else scored now, and kept."""
    key, asked = f"match {place}", hashlib.blake2b(rows.numpy().tobytes(), digest_size=8).hexdigest()
    kept = work.get(key)
    if kept is not None and kept["texts"] == asked:
        return torch.frombuffer(bytearray(base64.b64decode(kept["logits"])), dtype=getattr(torch, kept["dtype"]))
    logits = score()
    work.put(key, {"texts": asked, "dtype": str(logits.dtype).removeprefix("torch."),
                   "logits": base64.b64encode(logits.numpy().tobytes()).decode()})
    return logits


def _score_image(model: Any, embeds: Tensor, texts: Texts, rows: Tensor, sizes: Sizes) -> Tensor:
    """Match logits of one image (float[P,Dv]) with the texts `rows`: at least float32[len(rows)], on the CPU."""
    lengths = texts.mask[rows].sum(1)
    order = torch.argsort(lengths, stable=True)
    match = _matcher(model, embeds[None].to(model.device), texts.tokens)
    parts = []
    for batch in order.split(_runs(lengths[order].tolist(), sizes)):
        ids, mask = trimmed(texts.ids[rows[batch]], texts.mask[rows[batch]], model.device)
        logits = match(ids, mask)
        parts.append((logits if logits.dtype == torch.float64 else logits.float()).cpu())
    return torch.cat(parts)[torch.argsort(order)]


def _runs(lengths: Sequence[int], sizes: Sizes) -> list[int]:
    """How many pairs go into each pass, of ascending text lengths: a pass ends early where the texts get longer.

    Padding costs as much as text; but a pass of few pairs is slow.
    """
    runs, start = [], 0
    for place in range(1, len(lengths) + 1):
        count = place - start
        longer = place < len(lengths) and lengths[place] > lengths[place - 1] and count >= sizes.pair_batch_least
        if place == len(lengths) or count == sizes.pair_batch or longer:
            runs.append(count)
            start = place
    return runs


def _matcher(model: Any, image: Tensor, tokens: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """(ids int64[T,L], mask [T,L]) -> match logits float[T] with one image float[1,P,Dv]."""
    if not hasattr(model, "image_kv"):
        return lambda ids, mask: model.compute_itm(image.expand(len(ids), -1, -1), ids, mask)
    keys_values = model.image_kv(image)
    return lambda ids, mask: model.match_logits(keys_values.repeated(len(ids)), tokens(ids, mask))[:, 1]


def _reordered(itc: Candidates, logits: Tensor) -> Candidates:
    """The first columns re-ordered by logit + cosine, the others after them as they were."""
    scored = logits.shape[1]
    front = best(*by_index(itc.index[:, :scored], logits + itc.score[:, :scored]), scored)
    return Candidates(torch.cat([front.index, itc.index[:, scored:]], 1),
                      torch.cat([front.score, itc.score[:, scored:]], 1))
