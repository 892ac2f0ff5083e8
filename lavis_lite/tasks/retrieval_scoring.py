"""Image-text retrieval with a stage-1 model: ITC over everything, ITM over the best k (BLIP-2 section 4.4).

The work is shared over ranks with bounded memory. A rank holds the image features of its own images only. It computes
their rows of the ITC matrix, a block of texts at a time, and scores their pairs. Ranks exchange
float[E] per text, the best k (index, cosine) of each query, and one float per re-ranked pair.

Blocks of work follow the index of an image or text in the gallery, not the rank. So 1, 2 and 3 ranks run the same
matrix products and give the same bits.

N images, M texts, Q query tokens, P patches, E width of the ITC space, D width of the Q-Former, K candidates kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavis_lite import distributed
from lavis_lite.errors import shown
from lavis_lite.finite import check_finite
from lavis_lite.metrics.retrieval import KS, ranks_from_candidates, recalls
from lavis_lite.models.base import autocast_type
from lavis_lite.models.protocols import Retriever
from lavis_lite.tasks.base import ProgressHandle
from lavis_lite.tasks.retrieval_parts import (
    BothWays,
    Candidates,
    Gallery,
    OwnImages,
    Sizes,
    Texts,
    best,
    by_index,
    trimmed,
)
from lavis_lite.tasks.retrieval_reranking import rerank

TEXT_BLOCK = 1024
"""texts per block of the ITC matrix, and per exchange of candidates"""


@torch.no_grad()
def encode_texts(model: Retriever, texts: Sequence[str], sizes: Sizes) -> Texts:
    """Tokenize all texts and compute their ITC features; the ranks take batches in turn. Collective.

    Raises:
        CheckpointError: a feature is NaN or infinite.
    """
    tokens = model.tokenize(list(texts))
    ids, mask, kind = tokens.ids.cpu(), tokens.mask.cpu(), type(tokens)
    order = torch.argsort(mask.sum(1), stable=True)  # similar lengths together: less padding
    mine = {}
    for number, rows in enumerate(order.split(sizes.text_batch)):
        if number % distributed.world_size() == distributed.rank():
            hidden = model.forward_text(kind(*trimmed(ids[rows], mask[rows], model.device)))
            found = model.project_text(hidden).cpu()
            mine[number] = check_finite(found, partial(_text, texts, rows.tolist()))
    batches: dict[int, Tensor] = {}
    for part in distributed.all_gather_object(mine):
        batches |= part
    features = torch.cat([batches[number] for number in range(len(batches))])
    return Texts(ids, mask, features[torch.argsort(order)], kind)


def _text(texts: Sequence[str], rows: Sequence[int], row: int) -> str:
    return f"retrieval: the features of the text {shown(texts[rows[row]])} are NaN or infinite."


@torch.no_grad()
def itc_candidates(own: OwnImages, texts: Texts, gallery: Gallery, keep: int, sizes: Sizes,
                   device: torch.device) -> BothWays:
    """The best `keep` of each query by ITC (cosine, best query token), both ways, equal on all ranks. Collective."""
    image_index = own.indices.to(device)
    running = Candidates(image_index.new_empty(len(image_index), 0), torch.empty(len(image_index), 0, device=device))
    images_of_text = []
    for start in range(0, len(texts.features), TEXT_BLOCK):
        block = texts.features[start:start + TEXT_BLOCK].to(device)
        similarity = _similarity(own, block, sizes)
        columns = torch.arange(start, start + len(block), device=device).expand(similarity.shape)
        running = best(torch.cat([running.index, columns], 1), torch.cat([running.score, similarity], 1), keep)
        images_of_text.append(_merge(best(image_index.expand(len(block), -1), similarity.T, keep), keep))
    return BothWays(_rows_of_all(own.indices, running, len(gallery.images)),
                    Candidates(torch.cat([part.index for part in images_of_text]),
                               torch.cat([part.score for part in images_of_text])))


def _similarity(own: OwnImages, text_features: Tensor, sizes: Sizes) -> Tensor:
    """Rows of the ITC matrix: float32[n, texts], the largest cosine over the query tokens."""
    device = text_features.device
    rows = [torch.empty(0, len(text_features), device=device)]
    with torch.autocast(device.type, enabled=False):  # 8 bits of mantissa would make ties of near neighbours
        for block in _blocks(own.indices, sizes.image_block):
            rows.append((own.features[block].to(device) @ text_features.T).amax(1))
    return torch.cat(rows)


def _blocks(image_index: Tensor, size: int) -> Iterator[slice]:
    """Slices of the ascending `image_index` that fall into the same block of the whole gallery."""
    start = 0
    for number in (image_index // size).unique_consecutive(return_counts=True)[1].tolist():
        yield slice(start, start + number)
        start += number


def _merge(local: Candidates, keep: int) -> Candidates:
    """Best of all ranks' candidates for the same queries, on the CPU."""
    parts = distributed.all_gather_object((local.index.cpu(), local.score.cpu()))
    return best(*by_index(torch.cat([index for index, _ in parts], 1), torch.cat([score for _, score in parts], 1)),
                keep)


def _rows_of_all(image_index: Tensor, rows: Candidates, count: int) -> Candidates:
    """Every rank's rows at their indices: [n, K] -> [count, K], on the CPU."""
    parts = distributed.all_gather_object((image_index, rows.index.cpu(), rows.score.cpu()))
    where = torch.argsort(torch.cat([part[0] for part in parts]))
    index, score = torch.cat([part[1] for part in parts])[where], torch.cat([part[2] for part in parts])[where]
    if len(index) != count:
        raise ValueError(f"the ranks have {len(index)} rows for {count} images")
    return Candidates(index, score)


def indices(samples: dict[str, Any]) -> list[int]:
    """The indices of a batch's images in their data set, in one copy from the device."""
    return [int(index) for index in torch.as_tensor(samples["index"]).tolist()]


def picture_key(samples: Mapping[str, Any]) -> str:
    """The key under which a batch has its pictures: image or video."""
    return "video" if "video" in samples else "image"


@torch.no_grad()
def image_rows(model: Retriever, samples: dict[str, Any], keep_embeds: bool) -> list[dict[str, Any]]:
    """The features of a batch of images: one row per image, tensors on the CPU.

    Args:
        model: a stage-1 model.
        samples: image float[B,3,H,W] (or video float[B,3,T,H,W]) and index int[B], the index of each in its data set.
        keep_embeds: also keep the vision encoder's output, for re-ranking.

    Returns:
        rows {id: int, image_feats: float32[Q,E]} and, with keep_embeds, image_embeds: float[P,Dv], in autocast's type
        under autocast.

    Raises:
        CheckpointError: features that are NaN or infinite.
    """
    hidden, embeds = model.forward_image(samples[picture_key(samples)])
    image_index = indices(samples)
    found = check_finite(model.project_image(hidden).cpu(),
                         lambda row: f"retrieval: the features of image {image_index[row]} of the split are NaN or "
                                     "infinite.")
    rows: list[dict[str, Any]] = [
        {"id": index, "image_feats": features} for index, features in zip(image_index, found, strict=True)]
    if keep_embeds:
        # in autocast's type, in which keys and values are computed: half the memory, the same bits
        for row, embed in zip(rows, embeds.to(dtype=autocast_type(embeds.device)).cpu(), strict=True):
            row["image_embeds"] = embed
    return rows


def retrieve(model: Retriever, rows: Sequence[dict[str, Any]], gallery: Gallery, k_test: int, sizes: Sizes,
             progress: ProgressHandle | None = None) -> tuple[BothWays, BothWays | None]:
    """This rank's rows -> the gallery's candidates by ITC, and by ITC + ITM when `k_test` > 0. Collective."""
    texts = encode_texts(model, gallery.texts, sizes)
    embeds = [row["image_embeds"] for row in rows] if k_test > 0 else None
    own = OwnImages.of([row["id"] for row in rows], [row["image_feats"] for row in rows], embeds, gallery)
    itc = itc_candidates(own, texts, gallery, max(k_test, max(KS)), sizes, model.device)
    return itc, rerank(model, own, texts, itc, k_test, sizes, progress) if k_test > 0 else None


def recalls_of(found: BothWays, gallery: Gallery) -> dict[str, float]:
    """Recall both ways of candidates, keys as in `metrics.retrieval.recalls`."""
    return recalls(ranks_from_candidates(found.texts_of_image.index, gallery.img2txt),
                   ranks_from_candidates(found.images_of_text.index, gallery.txt2img))
