"""ITC candidates and ITM re-ranking against full matrices computed the plain way; equal for 1, 2 and 3 ranks."""

from __future__ import annotations

import pytest
import torch

from lavis_lite import distributed
from lavis_lite.metrics.retrieval import ranks_from_scores, recalls
from lavis_lite.tasks import retrieval_scoring
from lavis_lite.tasks.retrieval_parts import Gallery, Sizes, best
from lavis_lite.tasks.retrieval_scoring import image_rows, recalls_of, retrieve
from tests.helpers.processes import run_processes
from tests.tasks.fakes import WIDTH, TinyModel, batches, dataset

SIZES = Sizes(image_block=4, text_batch=5, pair_batch=3)
FAR_BELOW = 100.0


def evaluated(split, k_test, sizes=SIZES, rank=0, ranks=1):
    model = TinyModel()
    mine = batches(split, sizes.image_block, rank, ranks)
    rows = [row for batch in mine for row in image_rows(model, batch, keep_embeds=k_test > 0)]
    gallery = Gallery.of(split, range(len(split.pixels)))
    return (*retrieve(model, rows, gallery, k_test, sizes), gallery, model, rows)


@torch.no_grad()
def plain_matrices(split, k_test):
    """(ITC, i2t, t2i) scores pair by pair; what ITM did not score stays in ITC order, far below."""
    model = TinyModel()
    hidden, embeds = model.forward_image(split.pixels)
    features = torch.nn.functional.normalize(model.vision_proj(hidden), dim=-1)
    tokens = model.tokenize(split.text)
    texts = torch.nn.functional.normalize(model.text_proj(model.forward_text(tokens)), dim=-1)
    itc = torch.stack([torch.stack([(queries @ text).max() for text in texts]) for queries in features])
    pairs = [embed.expand(len(texts), -1, -1) for embed in embeds]
    itm = torch.stack([model.compute_itm(images, tokens.ids, tokens.mask) for images in pairs])
    return itc, _top_scored(itc, itm, k_test), _top_scored(itc.T, itm.T, k_test)


def _top_scored(itc, itm, k_test):
    scored = torch.zeros_like(itc, dtype=torch.bool)
    scored.scatter_(1, itc.argsort(dim=1, descending=True, stable=True)[:, :k_test], True)
    return torch.where(scored, itc + itm, itc - FAR_BELOW)


@pytest.mark.parametrize("k_test", [1, 3, 15, 100])  # 15: more than there are images, fewer than texts
@pytest.mark.parametrize("text_block", [4, 1024])
def test_both_stages_equal_the_plain_matrices(monkeypatch, k_test, text_block):
    monkeypatch.setattr(retrieval_scoring, "TEXT_BLOCK", text_block)
    split = dataset(11)
    itc, itm, gallery, model, _ = evaluated(split, k_test)
    plain, i2t, t2i = plain_matrices(split, k_test)
    assert torch.equal(itc.texts_of_image.index[:, 0], plain.argmax(1))
    torch.testing.assert_close(itc.texts_of_image.score[:, :1], plain.amax(1, keepdim=True))
    for found, scores in ((itm.texts_of_image, i2t), (itm.images_of_text, t2i)):
        k = min(k_test, scores.shape[1])
        torch.testing.assert_close(found.score[:, :k], scores.sort(descending=True).values[:, :k])
    for found, ways in ((itc, (plain, plain.T)), (itm, (i2t, t2i))):
        expected = recalls(ranks_from_scores(ways[0], gallery.img2txt), ranks_from_scores(ways[1], gallery.txt2img))
        assert recalls_of(found, gallery) == expected


def test_k_test_is_clipped_and_every_pair_is_scored_once():
    split = dataset(5)
    _, itm, gallery, model, _ = evaluated(split, k_test=10_000)
    assert itm.texts_of_image.index.shape == (5, len(split.text))
    assert itm.images_of_text.index.shape == (len(split.text), 5)
    assert sum(pairs for pairs, _ in model.itm_shapes) == 5 * len(split.text)
    longest = max(map(len, split.text))
    assert min(width for _, width in model.itm_shapes) < longest == max(width for _, width in model.itm_shapes)


def test_without_reranking_no_image_features_are_kept_and_itm_is_not_called():
    itc, itm, _, model, rows = evaluated(dataset(5), k_test=0)
    assert itm is None and model.itm_shapes == [] and "image_embeds" not in rows[0]


def test_ties_go_by_index_in_both_stages():
    split = dataset(6, captions=(2,), repeat=True)
    itc, itm, *_ = evaluated(split, k_test=100)
    for found in (itc, itm):
        assert found.texts_of_image.index.tolist() == [list(range(12))] * 6
        pairs = found.images_of_text.index.reshape(12, 3, 2)
        assert torch.equal(pairs[..., 0] + 1, pairs[..., 1])  # equal images stand together, the lower index first


def test_best_puts_nan_last():
    found = best(torch.tensor([[0, 1, 2]]), torch.tensor([[float("nan"), -5.0, 1.0]]), keep=3)
    assert found.index.tolist() == [[2, 1, 0]]


def rank_results(k_test, sizes):
    """What one process of a group finds for data sets of these sizes, and the shapes of what it sent."""
    sent, found = [], []
    gather = distributed.all_gather_object
    distributed.all_gather_object = lambda item: (sent.extend(_shapes(item)), gather(item))[1]
    try:
        for images in sizes:
            itc, itm, gallery, _, rows = evaluated(dataset(images), k_test, SIZES, distributed.rank(),
                                                   distributed.world_size())
            sides = [side for way in (itc, itm) for side in (way.texts_of_image, way.images_of_text)]
            found.append({"parts": [part for side in sides for part in (side.index, side.score)],
                          "recalls": recalls_of(itm, gallery), "rows": len(rows)})
    finally:
        distributed.all_gather_object = gather
    return found, sent


def _shapes(item):
    if isinstance(item, int):  # whether to stop
        return []
    return [tuple(value.shape) for value in (item.values() if isinstance(item, dict) else item)]


@pytest.mark.slow
def test_two_and_three_ranks_give_the_bits_of_one():
    sizes = (11, 3)  # 3 images are one batch: there is a rank without any
    alone, _ = rank_results(6, sizes)
    for count in (2, 3):
        results = run_processes(rank_results, count, 6, sizes)
        for place, expected in enumerate(alone):
            assert sum(found[place]["rows"] for found, _ in results) == sizes[place]
            for found, _ in results:
                assert found[place]["recalls"] == expected["recalls"]
                for part, right in zip(found[place]["parts"], expected["parts"], strict=True):
                    assert (part == right.numpy()).all()
        shapes = [tuple(shape) for _, sent in results for shape in sent]
        assert shapes and all(len(shape) <= 2 and shape[-1] != WIDTH for shape in shapes), "image features crossed"
