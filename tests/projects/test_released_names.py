"""Names of public releases, on stand-ins of tiny shapes: MiniGPT-4's linear layer, OpenFlamingo's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from lavis_lite.checkpoints.load import is_known_layout, recognise
from lavis_lite.errors import CheckpointError
from lavis_lite.models.connectors.queries import Resampler
from projects.flamingo.model import GatedLayer
from projects.flamingo.openflamingo import from_openflamingo

NARROW, WIDE, HEADS, HEAD = 6, 10, 2, 3
Weights = dict[str, Tensor]


def stand_in() -> Weights:
    """A release with two resampler layers, and gated layers before blocks 1 and 3."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def feed(start: str, width: int) -> Weights:
        return {f"{start}.0.weight": random(width), f"{start}.0.bias": random(width),
                f"{start}.1.weight": random(2 * width, width), f"{start}.3.weight": random(width, 2 * width)}

    inner = HEADS * HEAD
    found = {"perceiver.latents": random(4, NARROW), "perceiver.norm.weight": random(NARROW),
             "perceiver.norm.bias": random(NARROW), "lang_encoder.transformer.wte.weight": random(7, WIDE)}
    for number in range(2):
        start = f"perceiver.layers.{number}"
        found |= {f"{start}.0.{norm}.{leaf}": random(NARROW) for norm in ("norm_media", "norm_latents")
                  for leaf in ("weight", "bias")}
        found |= {f"{start}.0.to_q.weight": random(inner, NARROW), f"{start}.0.to_kv.weight": random(2 * inner, NARROW),
                  f"{start}.0.to_out.weight": random(NARROW, inner), **feed(f"{start}.1", NARROW)}
    for number in (1, 3):
        start = f"lang_encoder.gated_cross_attn_layers.{number}"
        found |= {f"{start}.attn.norm.{leaf}": random(WIDE) for leaf in ("weight", "bias")}
        found |= {f"{start}.attn.to_q.weight": random(inner, WIDE),
                  f"{start}.attn.to_kv.weight": random(2 * inner, NARROW),
                  f"{start}.attn.to_out.weight": random(WIDE, inner), f"{start}.attn_gate": random(1),
                  f"{start}.ff_gate": random(1), **feed(f"{start}.ff", WIDE)}
    return found


def attended(weights: Weights, start: str, query: Tensor, seen: Tensor) -> Tensor:
    """Attention of several heads, float[B,S,W] and float[B,T,Dv] -> float[B,S,W]."""
    key, value = linear(seen, weights[f"{start}.to_kv.weight"]).chunk(2, -1)
    query, key, value = (part.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
                         for part in (linear(query, weights[f"{start}.to_q.weight"]), key, value))
    mixed = (query @ key.transpose(-1, -2) / HEAD**0.5).softmax(-1) @ value
    return linear(mixed.transpose(1, 2).flatten(2), weights[f"{start}.to_out.weight"])


def normed(weights: Weights, start: str, values: Tensor) -> Tensor:
    return layer_norm(values, values.shape[-1:], weights[f"{start}.weight"], weights[f"{start}.bias"])


def fed(weights: Weights, start: str, values: Tensor) -> Tensor:
    inner = gelu(linear(normed(weights, f"{start}.0", values), weights[f"{start}.1.weight"]))
    return linear(inner, weights[f"{start}.3.weight"])


def test_openflamingo_computes_the_same_under_our_names() -> None:
    theirs = stand_in()
    ours = from_openflamingo(theirs, image_token=5)
    torch.testing.assert_close(ours["mark"], theirs["lang_encoder.transformer.wte.weight"][5], rtol=0, atol=0)
    features, text = (torch.randn(2, size, width, dtype=torch.float64) for size, width in ((5, NARROW), (3, WIDE)))
    latents = theirs["perceiver.latents"].expand(2, -1, -1)
    for number in range(2):
        start = f"perceiver.layers.{number}"
        own = normed(theirs, f"{start}.0.norm_latents", latents)
        seen = torch.cat([normed(theirs, f"{start}.0.norm_media", features), own], 1)
        latents = latents + attended(theirs, f"{start}.0", own, seen)
        latents = latents + fed(theirs, f"{start}.1", latents)
    latents = normed(theirs, "perceiver.norm", latents)
    resampler = Resampler(None, NARROW, WIDE, queries=4, depth=2, heads=HEADS, head_width=HEAD, ratio=2).double()
    resampler.load_state_dict({name.removeprefix("connector."): value for name, value in ours.items()
                               if name.startswith("connector.")})
    vectors = resampler(features)
    torch.testing.assert_close(vectors[..., :NARROW], latents, rtol=0, atol=1e-12)
    for number, block in enumerate((1, 3)):
        start = f"lang_encoder.gated_cross_attn_layers.{block}"
        asked = normed(theirs, f"{start}.attn.norm", text)
        expected = text + theirs[f"{start}.attn_gate"].tanh() * attended(theirs, f"{start}.attn", asked, latents)
        expected = expected + theirs[f"{start}.ff_gate"].tanh() * fed(theirs, f"{start}.ff", expected)
        layer = GatedLayer(WIDE, HEADS, HEAD, 2).double()
        layer.load_state_dict({name.removeprefix(f"gated.{number}."): value for name, value in ours.items()
                               if name.startswith(f"gated.{number}.")})
        found = layer(text, vectors, torch.tensor([[0], [1]]), torch.ones(2, 3, dtype=torch.int64))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_another_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no perceiver.latents among a.weight"):
        from_openflamingo({"a.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"not of OpenFlamingo: lang_encoder.head.bias"):
        from_openflamingo({**stand_in(), "lang_encoder.head.bias": torch.zeros(1)})


def test_minigpt4s_release_is_its_linear_layer() -> None:
    names = {"llama_proj.weight": torch.zeros(3, 2), "llama_proj.bias": torch.zeros(3)}
    layout, found = recognise(names)
    assert is_known_layout(names) and layout == "MiniGPT-4" and not found.unknown
    assert list(found.tensors) == ["connector.language_projection.weight", "connector.language_projection.bias"]
