"""A training batch in groups of rows of about the same length."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.models.language_model import groups
from tests.models.language_model.tiny import soft_prompts, tiny

CPU = torch.device("cpu")


def test_rows_of_a_length_go_together_on_a_cpu() -> None:
    lengths = [20, 9, 21, 8, 19, 10, 20, 8]
    assert groups.groups_by_length(lengths, CPU) == [[3, 7, 1, 5], [4, 0, 6, 2]]
    assert groups.groups_by_length(lengths, torch.device("meta")) == [list(range(8))]
    assert groups.groups_by_length([20] * 8, CPU) == groups.groups_by_length([20, 20, 19, 20] * 2, CPU) == [
        list(range(8))]
    assert max(map(len, groups.groups_by_length(list(range(1, 41)), CPU))) == 10


def test_the_batchs_order_comes_back() -> None:
    values = [torch.full((count, 2), float(row)) for row, count in enumerate([2, 1, 3])]
    found = groups.run_groups([[2, 0], [1]], [2, 1, 3], lambda rows: torch.cat([values[row] for row in rows]))
    assert torch.equal(found, torch.cat(values))


@pytest.mark.parametrize("name", ["opt", "llama", "flan_t5", "bart"])
def test_losses_and_gradients_are_those_of_one_group(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    model.model.double()
    soft = soft_prompts(model, batch=7).detach().double().requires_grad_()
    before = [[5] * length for length in (9, 2, 1, 8, 2, 3, 9)]
    after = [[6, 7] * length for length in (1, 5, 6, 1, 4, 1, 1)]
    found = {}
    for worth in (0.96, 0.0):
        monkeypatch.setattr(groups, "WORTH", worth)
        losses = model.row_losses(soft, before, after)
        found[worth] = losses, *torch.autograd.grad((losses * torch.arange(len(losses))).sum(), soft)
    for grouped, whole in zip(*found.values(), strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-6 if "t5" in name else 1e-12, atol=1e-6)
