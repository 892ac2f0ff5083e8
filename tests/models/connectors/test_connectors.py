"""Connectors: shapes, what a mask hides, the published arithmetic, settings that cannot be, and outside ones."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.errors import ConfigError
from lavis_lite.models.connectors.base import Connector, build_connector, connector_error
from lavis_lite.models.connectors.queries import AbstractorLayer, ResamplerLayer
from lavis_lite.models.connectors.settings import SIZES as FROM_OUTSIDE
from lavis_lite.models.connectors.settings import settings_error, settings_of
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.registry import registry

REPOSITORY = Path(__file__).resolve().parents[3]
P, DV, D = 9, 16, 20
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "dropout": 0.0}
SECTIONS: dict[str, dict[str, Any]] = {
    "linear": {}, "mlp": {"depth": 3},
    "resampler": {"queries": 4, "depth": 2, "heads": 2, "head_width": 6},
    "abstractor": {"queries": 4, "depth": 2, "heads": 2, "inner": 24, "dropout": 0.0},
    "qformer": {"queries": 4, "sizes": SIZES},
}
COUNTS = {"linear": P, "mlp": P, "resampler": 4, "abstractor": 5, "qformer": 4}


def build(name: str, features: int | None = P, **settings: Any) -> Connector:
    torch.manual_seed(0)
    connector = build_connector({"type": name, **SECTIONS[name], **settings}, features, DV, D).double()
    with torch.no_grad():
        for value in connector.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return connector


def test_every_connector_is_tested() -> None:
    assert set(SECTIONS) == set(registry.connector.builtins)


@pytest.mark.parametrize("name", SECTIONS)
def test_vectors_and_gradients(name: str) -> None:
    connector = build(name)
    features = torch.randn(3, P, DV, dtype=torch.float64, requires_grad=True)
    vectors = connector(features)
    assert vectors.shape == (3, COUNTS[name], D) and (connector.tokens, connector.width) == (COUNTS[name], D)
    vectors.square().sum().backward()
    assert all(value.grad is not None for value in connector.parameters()) and features.grad is not None
    alone = torch.cat([connector(features[row:row + 1]) for row in range(3)])
    torch.testing.assert_close(vectors, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["resampler", "abstractor", "qformer"])
def test_padded_equals_unpadded(name: str) -> None:
    connector = build(name, None)
    features = torch.randn(2, P, DV, dtype=torch.float64)
    mask = torch.ones(2, P, dtype=torch.bool)
    mask[1, 4:] = False
    padded = connector(torch.where(mask[..., None], features, 1e3 * torch.ones_like(features)), mask)
    torch.testing.assert_close(padded[0], connector(features[:1])[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(padded[1], connector(features[1:, :4])[0], atol=1e-12, rtol=0)


def plain_attention(layer: Any, queries: Tensor, seen: Tensor) -> Tensor:
    """By the formula, one head after the other."""
    query, key, value = layer.query(queries), layer.key(seen), layer.value(seen)
    width = query.shape[-1] // layer.heads
    parts = [part.split(width, -1) for part in (query, key, value)]
    mixed = [(q @ k.transpose(1, 2) / width ** 0.5).softmax(-1) @ v for q, k, v in zip(*parts, strict=True)]
    return layer.output(torch.cat(mixed, -1))


@torch.no_grad()
def test_a_resampler_layer_is_flamingos() -> None:
    torch.manual_seed(1)
    layer = ResamplerLayer(DV, 2, 6, 4).double()
    queries, features = torch.randn(2, 3, DV, dtype=torch.float64), torch.randn(2, P, DV, dtype=torch.float64)
    own = layer.norm_queries(queries)
    between = queries + plain_attention(layer.attention, own, torch.cat([layer.norm_features(features), own], 1))
    norm, up, _, down = layer.feed_forward
    wanted = between + F.gelu(norm(between) @ up.weight.T) @ down.weight.T
    torch.testing.assert_close(layer(queries, features, None), wanted, atol=1e-12, rtol=0)


@torch.no_grad()
def test_an_abstractor_layer_is_mplug_owls() -> None:
    """The residual of the attention is the normalised query."""
    torch.manual_seed(1)
    layer = AbstractorLayer(DV, 2, 24, 0.0).double()
    queries, features = torch.randn(2, 3, DV, dtype=torch.float64), torch.randn(2, P, DV, dtype=torch.float64)
    own = layer.norm_queries(queries)
    between = own + plain_attention(layer.attention, own, torch.cat([own, layer.norm_features(features)], 1))
    given = layer.norm_attended(between)
    wanted = between + layer.down(layer.norm_inner(F.silu(layer.gate(given)) * layer.up(given)))
    torch.testing.assert_close(layer(queries, features, None), wanted, atol=1e-12, rtol=0)


def test_mlp2x_gelu() -> None:
    layers = build("mlp", depth=2).layers
    assert [type(layer) for layer in layers] == [nn.Linear, nn.GELU, nn.Linear]  # type: ignore[union-attr]
    assert layers[1].approximate == "none"  # type: ignore[index]
    assert [tuple(value.shape) for value in layers.parameters()] == [(D, DV), (D,), (D, D), (D,)]  # type: ignore[union-attr]


def test_a_frozen_qformer_trains_its_projection_alone() -> None:
    connector = build("qformer", frozen=True).train()
    assert {name for name, value in connector.named_parameters() if value.requires_grad} == {
        "language_projection.weight", "language_projection.bias"}
    assert isinstance(connector.qformer, QFormer) and not connector.qformer.training


def test_a_qformer_that_reads_the_instruction() -> None:
    connector = build("qformer", reads_text=True, tokenizer="mini")
    features = torch.randn(1, P, DV, dtype=torch.float64)
    red, blue = (connector(features, texts=[f"is it {word}?"]) for word in ("red", "blue"))
    assert not torch.allclose(red, blue)
    with pytest.raises(ConfigError, match="reads the instruction"):
        connector(features)


@pytest.mark.parametrize(("section", "key", "words"), [
    ({}, "connector", "names no type"), ({"type": "mpl"}, "connector", "did you mean 'mlp'"),
    ({"type": "mlp", "dept": 2}, "connector.dept", "did you mean 'depth'"),
    ({"type": "mlp", "depth": 0}, "connector.depth", "at least 1, not 0"),
    ({"type": "abstractor", "heads": 3}, "connector.heads", "3 heads do not divide"),
    ({"type": "qformer", "sizes": {"layers": 2}}, "connector.sizes", "layers")])
def test_settings_that_cannot_be(section: dict[str, Any], key: str, words: str) -> None:
    found = connector_error(section)
    assert found is not None and found[0] == key and words in found[1]


@pytest.mark.parametrize(("section", "words"), [
    ({"type": "mlp", "depth": True}, "depth: must be a whole number of at least 1, not True"),
    ({"type": "qformer", "frozen": "no"}, "frozen: must be true or false, not 'no'"),
    ({"type": "abstractor", "dropout": "0.1"}, "dropout: must be a number, not '0.1'")])
def test_values_of_another_kind(section: dict[str, Any], words: str) -> None:
    found = settings_error(section)
    assert found is not None and words in ": ".join(found)
    assert connector_error(section) == found


@pytest.mark.parametrize("name", sorted(registry.connector.builtins))
def test_settings_are_read_from_the_source_as_python_has_them(name: str) -> None:
    given = inspect.signature(registry.connector.get(name)).parameters
    assert settings_of(name) == {key: one.default for key, one in given.items() if key not in FROM_OUTSIDE}


def test_a_wrong_setting_is_answered_without_torch() -> None:
    code = ("import sys; from lavis_lite.config.compose import compose; from lavis_lite.preflight import check\n"
            "found = check(compose('projects/llava/mini_stage1.yaml', ['model.connector.dept=2']))\n"
            "assert 'torch' not in sys.modules; print(*found)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "model.connector.dept: mlp has no such setting; did you mean 'depth'" in done.stdout


@pytest.mark.parametrize(("name", "section"), SECTIONS.items())
def test_settings_that_can_be(name: str, section: dict[str, Any]) -> None:
    assert connector_error({"type": name, **section}) is None


def test_one_vector_per_feature_needs_their_number() -> None:
    with pytest.raises(ConfigError, match="different numbers of features; take one with a fixed number"):
        build("mlp", None)


@pytest.fixture
def outside() -> Iterator[str]:
    @registry.register_connector("mean_of_all")
    class MeanOfAll(Connector):
        """One vector: the mean of all features, through a linear layer."""

        def __init__(self, features: int | None, feature_width: int, width: int, *, bias: bool = True) -> None:
            super().__init__(features, feature_width, width)
            self.tokens, self.layer = 1, nn.Linear(feature_width, width, bias=bias)

        def forward(self, features: Tensor, mask: Tensor | None = None, texts: Any = None) -> Tensor:
            vectors: Tensor = self.layer(features.mean(1, keepdim=True))
            return vectors

    yield "mean_of_all"
    registry.connector._classes.pop("mean_of_all")


def test_an_outside_connector(outside: str) -> None:
    connector = build_connector({"type": outside, "bias": False}, P, DV, D)
    assert connector(torch.randn(2, P, DV)).shape == (2, 1, D)
    assert [name for name, _ in connector.named_parameters()] == ["layer.weight"]
