"""Products of linear layers by oneDNN give what torch's own give; and where they may not be used, torch's own are."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite import products
from lavis_lite.models.language import build_language_model
from lavis_lite.products import Linear, linear, plain, replace_linears

needs_onednn = pytest.mark.skipif(not products.IS_AVAILABLE, reason="needs an AMD CPU with AVX-512 and oneDNN")


@pytest.fixture
def both() -> tuple[nn.Linear, nn.Linear]:
    """A layer of torch and one with the same weights by this module, wide enough for oneDNN."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 320)
    return layer, replace_linears(copy.deepcopy(layer))


def _gradients(layer: nn.Linear, rows: Tensor, slope: Tensor) -> list[Tensor]:
    rows = rows.detach().clone().requires_grad_()
    out = layer(rows)
    return [out, *torch.autograd.grad(out, [rows, layer.weight, layer.bias], slope)]


@pytest.mark.parametrize("shape", [(60,), (5, 33)])
def test_results_and_gradients_are_those_of_torch(both: tuple[nn.Linear, nn.Linear], shape: tuple[int, ...]) -> None:
    rows, slope = torch.randn(*shape, 256), torch.randn(*shape, 320)
    for expected, found in zip(*(_gradients(layer, rows, slope) for layer in both), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_are_those_of_torch(both: tuple[nn.Linear, nn.Linear]) -> None:
    rows = torch.randn(60, 256, requires_grad=True)

    def second(layer: nn.Linear) -> Tensor:
        (first,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
        return torch.autograd.grad(first.square().mean(), layer.weight)[0]

    torch.testing.assert_close(second(both[1]), second(both[0]), rtol=1e-4, atol=1e-4)


def test_rows_before_a_frozen_weight_are_not_kept(both: tuple[nn.Linear, nn.Linear]) -> None:
    kept: list[torch.Size] = []
    layer = both[1].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor,  # type: ignore[func-returns-value]
                                                  lambda tensor: tensor):
        layer(torch.randn(60, 256, requires_grad=True))
    assert torch.Size([60, 256]) not in kept


@needs_onednn
def test_large_products_go_through_onednn_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    product = products._product
    monkeypatch.setattr(products, "_product", lambda rows, *more: made.append(len(rows)) or product(rows, *more))  # type: ignore[func-returns-value]
    weight = torch.randn(320, 256)
    linear(torch.randn(60, 256), weight)
    assert made == [60]
    linear(torch.randn(2, 256), weight)
    linear(torch.randn(60, 256).double(), weight.double())
    linear(torch.randn(60, 256, device="meta"), weight.to("meta"))
    with plain():
        linear(torch.randn(60, 256), weight)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(torch.randn(60, 256), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(60, 256), weight).dtype == torch.bfloat16
    assert made == [60]


@needs_onednn
def test_kernels_of_many_sizes_take_bounded_memory() -> None:
    """These 700 sizes took 390 MiB before the caches were bounded."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    weight = torch.randn(256, 256)
    linear(torch.randn(900, 256), weight)
    before = resident()
    for rows in range(800, 100, -1):
        linear(torch.randn(rows, 256), weight)
    assert resident() - before < 2**27


def test_changed_weights_count_at_once(both: tuple[nn.Linear, nn.Linear]) -> None:
    layer, rows = both[1].requires_grad_(False), torch.randn(60, 256)
    layer(rows)
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(rows), F.linear(rows, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_names_and_weights_stay_and_layers_of_another_class_do_too() -> None:
    class Own(nn.Linear):
        """Not torch's own."""

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4))
    before = model.state_dict()
    again = pickle.loads(pickle.dumps(replace_linears(model)[0]))
    assert type(model[0]) is type(again) is Linear and type(model[1]) is Own
    assert str(model[0]) == str(nn.Linear(4, 4))
    assert all(value is before[name] or torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_language_model_computes_by_such_layers() -> None:
    class Ids:
        pad, bos, end = 1, 0, 2

    sizes = {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
             "vocab_size": 12, "word_embed_proj_dim": 16, "max_position_embeddings": 8}
    model = build_language_model("", sizes=sizes, tokenizer=Ids(), family="general", precision="fp32")  # type: ignore[arg-type]
    expected = Linear if products.IS_AVAILABLE else nn.Linear
    assert {type(part) for part in model.modules() if isinstance(part, nn.Linear)} == {expected}
