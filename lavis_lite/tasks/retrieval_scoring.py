"""Image-text retrieval with a stage-1 model: ITC over everything, ITM over the best k (BLIP-2 section 4.4).

Shared over ranks with bounded memory. A rank holds the image features of its own images only: it computes their rows
of the ITC matrix, a block of texts at a time, and scores those (image, text) pairs whose image it owns. What crosses
ranks is float[E] per text, the best k (index, cosine) of each query, and one float per re-ranked pair.

The work is cut by the place of an image or text in the gallery and never by rank, so that 1, 2 and 3 ranks run the
same matrix products and give the same bits.

N images, M texts, Q query tokens, P patches, E width of the ITC space, D width of the Q-Former, K candidates kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lavis_lite import distributed
from lavis_lite.metrics.retrieval import KS, ranks_from_candidates, recalls, without_nan
from lavis_lite.tasks.gallery import Gallery

TEXT_BLOCK = 1024
"""texts per block of the ITC matrix, and per exchange of candidates"""


@dataclass(frozen=True)
class Sizes:
    """How the work is cut; scores do not depend on the ranks, bits may depend on these.

    image_block: images per block of ITC rows; with the evaluation's batch size, blocks and batches coincide.
    text_batch: texts per pass of the text encoder.
    pair_batch: (image, text) pairs per pass of the ITM head.
    """

    image_block: int = 64
    text_batch: int = 256
    pair_batch: int = 256


@dataclass(frozen=True)
class OwnImages:
    """This rank's images, ascending by their place in the gallery.

    places: int64[n]; features: float32[n,Q,E], unit length; embeds: n tensors float[P,Dv], or None without re-ranking.
    """

    places: Tensor
    features: Tensor
    embeds: list[Tensor] | None

    @classmethod
    def of(cls, indices: Sequence[int], features: Sequence[Tensor], embeds: Sequence[Tensor] | None,
           gallery: Gallery) -> OwnImages:
        """Order this rank's rows by the gallery; `indices` are the data set's image indices."""
        place = {image: number for number, image in enumerate(gallery.images)}
        order = sorted(range(len(indices)), key=lambda row: place[indices[row]])
        places = torch.tensor([place[indices[row]] for row in order], dtype=torch.long)
        stacked = torch.stack([features[row] for row in order]).float() if order else torch.empty(0, 1, 1)
        return cls(places, stacked, None if embeds is None else [embeds[row] for row in order])


@dataclass(frozen=True)
class Texts:
    """All texts of the gallery.

    ids: int64[M,L] and mask: bool[M,L], on the CPU; features: float32[M,E], unit length; tokens: the model's type of a
    batch of texts, made of ids and mask.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor
    tokens: Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Candidates:
    """Best K of each query, best first: index int64[N,K], score float32[N,K]."""

    index: Tensor
    score: Tensor


@dataclass(frozen=True)
class BothWays:
    """Candidates of each image among the texts, and of each text among the images."""

    texts_of_image: Candidates
    images_of_text: Candidates


def image_features(model: Any, query_hidden: Tensor) -> Tensor:
    """ITC features of the query tokens: float[B,Q,D] -> float32[B,Q,E], unit length."""
    return functional.normalize(model.vision_proj(query_hidden).float(), dim=-1)


@torch.no_grad()
def encode_texts(model: Any, texts: Sequence[str], sizes: Sizes) -> Texts:
    """Tokenize all texts and compute their ITC features, batches dealt out to the ranks by turns. Collective."""
    tokens = model.tokenize(list(texts))
    ids, mask, kind = tokens.ids.cpu(), tokens.mask.cpu(), type(tokens)
    order = torch.argsort(mask.sum(1), stable=True)  # similar lengths together: less padding
    mine = {}
    for number, rows in enumerate(order.split(sizes.text_batch)):
        if number % distributed.world_size() == distributed.rank():
            hidden = model.forward_text(kind(*_trimmed(ids[rows], mask[rows], model.device)))
            mine[number] = functional.normalize(model.text_proj(hidden).float(), dim=-1).cpu()
    batches: dict[int, Tensor] = {}
    for part in distributed.all_gather_object(mine):
        batches |= part
    features = torch.cat([batches[number] for number in range(len(batches))])
    return Texts(ids, mask, features[torch.argsort(order)], kind)


def _trimmed(ids: Tensor, mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask without the columns that pad all of them, on the model's device."""
    longest = max(int(mask.sum(1).max()), 1)
    return ids[:, :longest].to(device), mask[:, :longest].to(device)


@torch.no_grad()
def itc_candidates(own: OwnImages, texts: Texts, gallery: Gallery, keep: int, sizes: Sizes,
                   device: torch.device) -> BothWays:
    """The best `keep` of each query by ITC (cosine, best query token), both ways, equal on all ranks. Collective."""
    places = own.places.to(device)
    running = Candidates(places.new_empty(len(places), 0), torch.empty(len(places), 0, device=device))
    images_of_text = []
    for start in range(0, len(texts.features), TEXT_BLOCK):
        block = texts.features[start:start + TEXT_BLOCK].to(device)
        similarity = _similarity(own, block, sizes)
        columns = torch.arange(start, start + len(block), device=device).expand(similarity.shape)
        running = best(torch.cat([running.index, columns], 1), torch.cat([running.score, similarity], 1), keep)
        images_of_text.append(_merge(best(places.expand(len(block), -1), similarity.T, keep), keep))
    return BothWays(_rows_of_all(own.places, running, len(gallery.images)),
                    Candidates(torch.cat([part.index for part in images_of_text]),
                               torch.cat([part.score for part in images_of_text])))


def _similarity(own: OwnImages, text_features: Tensor, sizes: Sizes) -> Tensor:
    """Rows of the ITC matrix: float32[n, texts], the largest cosine over the query tokens."""
    device = text_features.device
    rows = [torch.empty(0, len(text_features), device=device)]
    with torch.autocast(device.type, enabled=False):  # 8 bits of mantissa would make ties of near neighbours
        for block in _blocks(own.places, sizes.image_block):
            rows.append((own.features[block].to(device) @ text_features.T).amax(1))
    return torch.cat(rows)


def _blocks(places: Tensor, size: int) -> Iterator[slice]:
    """Slices of the ascending `places` that fall into the same block of the whole gallery."""
    start = 0
    for number in (places // size).unique_consecutive(return_counts=True)[1].tolist():
        yield slice(start, start + number)
        start += number


def best(index: Tensor, score: Tensor, keep: int) -> Candidates:
    """The `keep` best columns of each row, best first; equal scores stay in the order they come in; NaN last.

    Args:
        index: int64[N, C], what each column stands for.
        score: float[N, C].
        keep: at most this many.
    """
    score = without_nan(score)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return Candidates(index.gather(1, order), score.gather(1, order))


def _by_index(index: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Each row ordered by index, so that `best` settles ties by it."""
    order = index.argsort(1)
    return index.gather(1, order), score.gather(1, order)


def _merge(local: Candidates, keep: int) -> Candidates:
    """Best of all ranks' candidates for the same queries, on the CPU."""
    parts = distributed.all_gather_object((local.index.cpu(), local.score.cpu()))
    return best(*_by_index(torch.cat([index for index, _ in parts], 1), torch.cat([score for _, score in parts], 1)),
                keep)


def _rows_of_all(places: Tensor, rows: Candidates, count: int) -> Candidates:
    """Every rank's rows put at their places: [n, K] -> [count, K], on the CPU."""
    parts = distributed.all_gather_object((places, rows.index.cpu(), rows.score.cpu()))
    where = torch.argsort(torch.cat([part[0] for part in parts]))
    index, score = torch.cat([part[1] for part in parts])[where], torch.cat([part[2] for part in parts])[where]
    if len(index) != count:
        raise ValueError(f"{len(index)} rows of {count} images came together")
    return Candidates(index, score)


@torch.no_grad()
def rerank(model: Any, own: OwnImages, texts: Texts, itc: BothWays, k_test: int, sizes: Sizes) -> BothWays:
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
    """
    if k_test <= 0:
        return itc
    wanted = _pairs(itc, k_test, len(texts.ids))
    mine = wanted[torch.isin(wanted // len(texts.ids), own.places)]
    logits = _score_pairs(model, own, texts, mine, sizes)
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


def _score_pairs(model: Any, own: OwnImages, texts: Texts, pairs: Tensor, sizes: Sizes) -> Tensor:
    """Match logits of ascending pairs of own images: float32[pairs] on the CPU.

    Image by image, its texts stacked by length: so a pass reads one image's features, pads little, and is the same
    whatever other images the rank owns.
    """
    if own.embeds is None:
        raise ValueError("re-ranking needs the image features; they were not kept for this split")
    logits = torch.empty(len(pairs))
    start = 0
    for embeds, place in zip(own.embeds, own.places.tolist(), strict=True):
        end = int(torch.searchsorted(pairs, (place + 1) * len(texts.ids)))
        rows = pairs[start:end] - place * len(texts.ids)
        if len(rows):
            logits[start:end] = _score_image(model, embeds, texts, rows, sizes)
        start = end
    return logits


def _score_image(model: Any, embeds: Tensor, texts: Texts, rows: Tensor, sizes: Sizes) -> Tensor:
    """Match logits of one image (float[P,Dv]) with the texts `rows`: float32[len(rows)]."""
    logits = torch.empty(len(rows))
    order = torch.argsort(texts.mask[rows].sum(1), stable=True)
    match = _matcher(model, embeds[None].to(model.device), texts.tokens)
    for batch in order.split(sizes.pair_batch):
        ids, mask = _trimmed(texts.ids[rows[batch]], texts.mask[rows[batch]], model.device)
        logits[batch] = match(ids, mask).float().cpu()
    return logits


def _matcher(model: Any, image: Tensor, tokens: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """(ids int64[T,L], mask [T,L]) -> match logits float[T] with one image float[1,P,Dv]."""
    if not hasattr(model, "image_kv"):
        return lambda ids, mask: model.compute_itm(image.expand(len(ids), -1, -1), ids, mask)
    keys_values = model.image_kv(image)
    return lambda ids, mask: model.match_logits(keys_values.repeated(len(ids)), tokens(ids, mask))[:, 1]


def _reordered(itc: Candidates, logits: Tensor) -> Candidates:
    """The first columns re-ordered by logit + cosine, the others after them as they were."""
    scored = logits.shape[1]
    front = best(*_by_index(itc.index[:, :scored], logits + itc.score[:, :scored]), scored)
    return Candidates(torch.cat([front.index, itc.index[:, scored:]], 1),
                      torch.cat([front.score, itc.score[:, scored:]], 1))


def indices(samples: dict[str, Any]) -> list[int]:
    """The places of a batch's images in their data set, in one copy from the device."""
    return [int(index) for index in torch.as_tensor(samples["index"]).tolist()]


@torch.no_grad()
def image_rows(model: Any, samples: dict[str, Any], keep_embeds: bool) -> list[dict[str, Any]]:
    """What retrieval needs of a batch of images: one row per image, tensors on the CPU.

    Args:
        model: a stage-1 model.
        samples: image float[B,3,H,W] and index int[B], the place of each image in its data set.
        keep_embeds: whether re-ranking will follow and the rows must hold the vision encoder's output.

    Returns:
        rows {id: int, image_feats: float32[Q,E]} and, if asked for, image_embeds: float[P,Dv].
    """
    hidden, embeds = model.forward_image(samples["image"])
    rows: list[dict[str, Any]] = [
        {"id": index, "image_feats": features}
        for index, features in zip(indices(samples), image_features(model, hidden).cpu(), strict=True)]
    if keep_embeds:
        for row, embed in zip(rows, embeds.cpu(), strict=True):
            row["image_embeds"] = embed
    return rows


def retrieve(model: Any, rows: Sequence[dict[str, Any]], gallery: Gallery, k_test: int,
             sizes: Sizes) -> tuple[BothWays, BothWays | None]:
    """This rank's rows -> the gallery's candidates by ITC, and by ITC + ITM when `k_test` > 0. Collective."""
    texts = encode_texts(model, gallery.texts, sizes)
    embeds = [row["image_embeds"] for row in rows] if k_test > 0 else None
    own = OwnImages.of([row["id"] for row in rows], [row["image_feats"] for row in rows], embeds, gallery)
    itc = itc_candidates(own, texts, gallery, max(k_test, max(KS)), sizes, model.device)
    return itc, rerank(model, own, texts, itc, k_test, sizes) if k_test > 0 else None


def recalls_of(found: BothWays, gallery: Gallery) -> dict[str, float]:
    """Recall both ways of candidates, keys as in `metrics.retrieval.recalls`."""
    return recalls(ranks_from_candidates(found.texts_of_image.index, gallery.img2txt),
                   ranks_from_candidates(found.images_of_text.index, gallery.txt2img))
