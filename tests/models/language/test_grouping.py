"""Rows of unequal lengths: little padding, and the losses and gradients of one padded batch."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.models.language.grouping import in_groups, length_groups
from tests.models.language.plain_decoding import exact_tiny
from tests.models.language.tiny import soft_prompts

TEXTS = ["a", "a red cat", "two dogs and a very long street with many houses", "b", "a small green bird sits here"] * 3


def padding(sizes: list[tuple[int, ...]], groups: list[list[int]]) -> float:
    padded = sum(len(group) * sum(map(max, zip(*(sizes[row] for row in group), strict=True))) for group in groups)
    return 1 - sum(map(sum, sizes)) / padded


def test_passes_have_every_row_once_and_little_padding() -> None:
    sizes: list[tuple[int, ...]] = [(32 + length,) for length in (5, 30, 12, 12, 13, 11, 28, 9, 55, 14)] * 4
    groups = length_groups(sizes, 0.05)
    assert sorted(row for group in groups for row in group) == list(range(len(sizes)))
    assert padding(sizes, groups) <= 0.05 < padding(sizes, [list(range(len(sizes)))])
    assert len(groups) <= 5


def test_equal_rows_make_one_pass_in_order() -> None:
    assert length_groups([(7, 3)] * 4, 0.05) == [[0, 1, 2, 3]]
    assert length_groups([(40, 3), (40, 4)], 0.05) == [[0, 1]]


def test_results_come_in_the_order_of_rows() -> None:
    counts, starts = [2, 0, 3, 1], [0, 2, 2, 5]
    groups = [[2], [0, 3], [1]]
    found = in_groups(groups, counts, lambda rows: torch.cat(
        [torch.arange(starts[row], starts[row] + counts[row]) for row in rows]))
    assert found.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["opt", "llama", "t5", "bart"])
def test_passes_change_neither_loss_nor_gradient(name: str) -> None:
    model = exact_tiny(name)
    results = []
    for most in (0.0, 1.0):
        model.most_padding = most
        vectors = soft_prompts(model, len(TEXTS)).double().requires_grad_()
        loss = model.loss(vectors, [""] * len(TEXTS), TEXTS)
        results.append((loss, *torch.autograd.grad(loss, vectors)))
    (loss, grad), (expected, expected_grad) = results
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)
    assert float(grad.abs().max()) > 1e-6
