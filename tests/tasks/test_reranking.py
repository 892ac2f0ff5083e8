"""Re-ranking of the real model against the loop over queries, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.bench.twins.rerank import PlainRerank
from lavis_lite.models.text_tokens import TextTokens
from lavis_lite.tasks.retrieval_parts import Gallery, OwnImages, Sizes
from lavis_lite.tasks.retrieval_reranking import _runs, rerank
from lavis_lite.tasks.retrieval_scoring import _similarity, encode_texts, image_rows, itc_candidates
from tests.models.stage1_helpers import SPECIAL, tiny_model

IMAGES, SIZES = 7, Sizes(image_block=2, text_batch=4, pair_batch=4)


class OnlyPairs:
    """A model that offers no more than `compute_itm`."""

    def __init__(self, model):
        self.device, self.compute_itm = model.device, model.compute_itm


@torch.no_grad()
def setting(dtype=torch.float64):
    """(model, own images, texts, gallery, pixels' features)."""
    torch.manual_seed(1)
    model = tiny_model().to(dtype).eval()
    captions = [" ".join(str(5 + (7 * text + word) % 50) for word in range(2 + text % 6)) for text in range(2 * IMAGES)]
    gallery = Gallery(list(range(IMAGES)), captions, [[2 * image, 2 * image + 1] for image in range(IMAGES)],
                      [text // 2 for text in range(2 * IMAGES)])
    rows = image_rows(model, {"image": torch.randn(IMAGES, 3, 4, 4, dtype=dtype), "index": torch.arange(IMAGES)}, True)
    own = OwnImages.of([row["id"] for row in rows], [row["image_feats"] for row in rows],
                       [row["image_embeds"] for row in rows], gallery)
    return model, own, encode_texts(model, captions, SIZES), gallery


@pytest.mark.parametrize("k", [1, 3, 10, 50])  # 10: more than there are images, fewer than texts
@pytest.mark.parametrize("kind", ["images", "pairs"])
def test_scores_and_ranks_are_those_of_the_loop_over_queries(kind, k):
    model, own, texts, gallery = setting()
    cpu = torch.device("cpu")
    itc = itc_candidates(own, texts, gallery, k, SIZES, cpu)
    wide = TextTokens(texts.ids, texts.mask).padded(16, SPECIAL.pad)
    plain = PlainRerank(model, torch.stack(own.embeds), wide.ids, wide.mask, _similarity(own, texts.features, SIZES), k)
    matrices = plain.matrices(range(IMAGES), range(len(texts.ids)))
    offered = OnlyPairs(model) if kind == "pairs" else model
    found = rerank(offered, own, texts, itc, k, SIZES)
    for side, matrix in zip((found.texts_of_image, found.images_of_text), matrices, strict=True):
        assert side.index.shape[1] == min(k, matrix.shape[1])
        assert torch.equal(side.index, matrix.argsort(dim=1, descending=True, stable=True)[:, :k])
        assert float((matrix.gather(1, side.index) - side.score).abs().max()) <= 1e-10


def test_float32_is_as_close_as_float32_is():
    scores = []
    for dtype in (torch.float32, torch.float64):
        model, own, texts, gallery = setting()
        own = OwnImages(own.indices, own.features, [embeds.to(dtype) for embeds in own.embeds])
        itc = itc_candidates(own, texts, gallery, 50, SIZES, torch.device("cpu"))
        scores.append(rerank(model.to(dtype), own, texts, itc, 50, SIZES).texts_of_image.score)
    assert [one.dtype for one in scores] == [torch.float32, torch.float64]
    assert 0 < float((scores[0] - scores[1]).abs().max()) <= 1e-5


def test_under_autocast_features_are_kept_in_its_type_and_give_the_same_bits():
    model = tiny_model().eval()
    samples = {"image": torch.randn(2, 3, 4, 4), "index": torch.arange(2)}
    tokens = model.tokenize(["5 6 7", "8 9"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        kept = torch.stack([row["image_embeds"] for row in image_rows(model, samples, True)])
        whole = model.forward_image(samples["image"])[1]
        assert kept.dtype == torch.bfloat16 and whole.dtype == torch.float32
        scores = [model.compute_itm(embeds, tokens.ids, tokens.mask) for embeds in (kept, whole)]
    assert torch.equal(*scores)
    with torch.no_grad():
        assert image_rows(model, samples, True)[0]["image_embeds"].dtype == torch.float32


@pytest.mark.parametrize(("lengths", "runs"), [
    ([], []), ([5], [1]), ([5] * 17, [16, 1]), ([5, 6, 7, 8], [2, 2]), ([5, 5, 5, 6, 6, 9], [3, 2, 1]),
    ([5] + [6] * 8, [9])])
def test_a_pass_ends_where_texts_get_longer(lengths, runs):
    assert _runs(lengths, Sizes(pair_batch=16)) == runs
