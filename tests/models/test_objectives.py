"""ITC, hard negatives, ITM and ITG as functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lavis_lite.models.blip2 import objectives

DOUBLE = torch.float64


def test_similarity_takes_the_best_query() -> None:
    queries, texts = torch.randn(3, 4, 8, dtype=DOUBLE), torch.randn(5, 8, dtype=DOUBLE)
    expected = torch.stack([torch.stack([(queries[i] @ texts[j]).max() for j in range(5)]) for i in range(3)])
    torch.testing.assert_close(objectives.similarity(queries, texts), expected)


def test_itc_is_smoothed_cross_entropy_when_every_image_differs() -> None:
    i2t, t2i = torch.randn(4, 6, dtype=DOUBLE), torch.randn(4, 6, dtype=DOUBLE)
    positives = torch.eye(6, dtype=torch.bool)[2:6]  # the second rank of a batch of 6, say
    target = torch.arange(2, 6)
    expected = sum(F.cross_entropy(sim, target, label_smoothing=0.1) for sim in (i2t, t2i)) / 2
    torch.testing.assert_close(objectives.itc_loss(i2t, t2i, positives), expected)


def test_itc_shares_the_target_among_equal_images() -> None:
    sim = torch.randn(2, 3, dtype=DOUBLE)
    positives = torch.tensor([[True, True, False], [False, False, True]])
    target = torch.tensor([[0.45, 0.45, 0.0], [0.0, 0.0, 0.9]], dtype=DOUBLE) + 0.1 / 3
    expected = -(sim.log_softmax(1) * target).sum(1).mean()
    torch.testing.assert_close(objectives.itc_loss(sim, sim, positives), expected)


def test_negatives_follow_the_softmax_of_similarity() -> None:
    draws = 20000
    sim = torch.tensor([[3.0, 0.0, 1.0, -1.0, 2.0]]).expand(draws, 5)
    positives = torch.tensor([[True, False, False, False, False]]).expand(draws, 5)
    uniform = torch.rand(draws, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    index, valid = objectives.choose_negatives(sim, positives, uniform)
    expected = torch.softmax(sim[0, 1:].double(), 0) * draws
    found = torch.bincount(index, minlength=5)[1:]
    assert bool(valid.all()) and int((index == 0).sum()) == 0
    assert float(((found - expected) ** 2 / expected).sum()) < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("own", [0, 2])
def test_a_positive_is_never_a_negative(uniform: float, own: int) -> None:
    positives = torch.zeros(1, 3, dtype=torch.bool)
    positives[0, own] = True
    sim = torch.tensor([[60.0, -60.0, 60.0]])  # the positive looks best of all, some negative hopeless
    index, valid = objectives.choose_negatives(sim, positives, torch.tensor([uniform], dtype=DOUBLE))
    assert bool(valid[0]) and int(index[0]) != own


def test_no_negative_is_said_so() -> None:
    positives = torch.tensor([[True, True], [False, True]])
    index, valid = objectives.choose_negatives(torch.zeros(2, 2), positives, torch.rand(2, dtype=DOUBLE))
    assert valid.tolist() == [False, True] and int(index[1]) == 0 and 0 <= int(index[0]) < 2


def test_itm_counts_only_pairs_that_exist() -> None:
    positive = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    negatives = torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    valid = torch.tensor([True, False, True, True])
    total, count = objectives.itm_terms(positive, negatives, valid)
    logits, labels = torch.cat([positive, negatives[valid]]), torch.tensor([1, 1, 0, 0, 0])
    torch.testing.assert_close(total / count, F.cross_entropy(logits, labels))
    total.backward()
    assert float(negatives.grad[1].abs().sum()) == 0.0


def test_itm_logits_average_over_queries() -> None:
    queries, head = torch.randn(3, 4, 8, dtype=DOUBLE), torch.nn.Linear(8, 2).double()
    torch.testing.assert_close(objectives.itm_logits(queries, head), head(queries).mean(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_chunked_lm_loss_equals_the_plain_one(smoothing: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, dtype=DOUBLE, generator=generator).requires_grad_()
                            for shape in ((7, 6), (11, 6), (11,)))
    targets = torch.tensor([3, -100, 0, 10, 5, -100, 5])
    found = []
    for function, more in ((objectives.lm_sum_plain, {}), (objectives.lm_sum, {"chunk": chunk})):
        loss = function(hidden, weight, bias, targets, smoothing, **more)
        found.append((loss, *torch.autograd.grad(loss * 0.7, (hidden, weight, bias))))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)


def test_lm_loss_without_any_target_is_zero_with_zero_gradient() -> None:
    hidden = torch.randn(3, 6, requires_grad=True)
    loss = objectives.lm_sum(hidden, torch.randn(9, 6), torch.zeros(9), torch.full((3,), -100))
    loss.backward()
    assert float(loss.detach()) == 0.0 and float(hidden.grad.abs().sum()) == 0.0


def test_lm_loss_under_autocast_stays_close() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 16, generator=generator), torch.randn(30, 16, generator=generator).requires_grad_()
    targets = torch.tensor([1, 2, 3, 4, 5])
    plain = objectives.lm_sum(hidden, weight, torch.zeros(30), targets)
    with torch.autocast("cpu", torch.bfloat16):
        low = objectives.lm_sum(hidden, weight, torch.zeros(30), targets)
    low.backward()
    assert low.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert abs(float(low / plain) - 1) < 0.02
