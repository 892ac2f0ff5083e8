"""The stage-2 step against its plain twin and transformers' model, in float64: same loss, same gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_lite.bench.stage2 import IdsOnly, LossFromIds
from lavis_lite.bench.twins.stage2 import PlainStage2
from lavis_lite.bench.twins.transformers_stage2 import IGNORE, HFStage2
from lavis_lite.bench.twins.transformers_stage2 import build as build_hf
from lavis_lite.checkpoints import from_lavis
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language import build_language_model
from lavis_lite.models.qformer.model import QFormer, QFormerConfig
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.models.vision.encoder import VisionEncoder
from tests.parity.exact import exact
from tests.parity.stand_ins import RENAMES

WIDTH, QUERIES = 9, 3
LLMS: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32},
    "t5": {"model_type": "t5", "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
           "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
}
BEFORE = {"opt": [[], [2, 4], [2]], "t5": [[4, 5, 1], [6, 1], [7, 8, 9, 10, 1]]}
AFTER = [[5, 6, 7, 8], [9, 3], [11, 12, 13, 14, 15, 16]]


def exact_norms(model: nn.Module) -> None:
    """T5's norm computes in float32; here in the type of its input."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "T5LayerNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)  # type: ignore[arg-type]
            norm.weight = module.weight  # type: ignore[assignment]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, norm)


def theirs(name: str) -> HFStage2:
    vision = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6}
    qformer = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
               "intermediate_size": 24, "encoder_hidden_size": 12, "cross_attention_frequency": 2,
               "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = build_hf(vision, qformer, LLMS[name], QUERIES, 39)
    model.vision_model.post_layernorm.eps = 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.qkv.bias[12:24] = 0.0
    if name == "opt":  # transformers takes this loss in float32
        model.loss_function = lambda logits, labels, **more: F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    return HFStage2(model)


def fresh(name: str, with_text: bool = False) -> Blip2LLM:
    """This package's model."""
    encoder = VisionEncoder("eva_clip_g", 28, frozen=True, depth=2, width=12, heads=2, mlp_ratio=2.0)
    qformer = QFormer(QFormerConfig(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24,
                                    num_queries=QUERIES, vision_width=12, dropout=0.0, with_text=with_text,
                                    with_lm_head=False))
    llm = build_language_model("", sizes=LLMS[name], tokenizer=IdsOnly(), precision="fp32")
    return Blip2LLM(encoder, qformer, TextTokenizer("bert-base-uncased"), llm)


def ours(name: str, twin: HFStage2) -> Blip2LLM:
    """This package's model with the weights of transformers'."""
    model, state = fresh(name), {}
    for key, value in twin.model.state_dict().items():
        for pattern, word in RENAMES:
            key = re.sub(pattern, word, key)
        state[key.replace("language_projection", "t5_proj").replace("language_model", "t5_model", 1)] = value
    for key in [key for key in state if key.endswith("qkv.bias")]:
        place, (query, _, last) = key.removesuffix("qkv.bias"), state.pop(key).chunk(3)
        state |= {f"{place}q_bias": query, f"{place}v_bias": last}
    found = from_lavis(state)
    assert not found.unknown
    model.load_state_dict(found.tensors, strict=False)
    double: Blip2LLM = exact(model)
    return double


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("width", [None, WIDTH], ids=["longest", "wider"])
@pytest.mark.parametrize("name", LLMS)
def test_loss_and_gradients_are_those_of_the_twins(name: str, width: int | None) -> None:
    torch.manual_seed(3)
    twin = theirs(name).double().train()
    model = ours(name, twin).train()
    for part in (twin, model):
        exact_norms(part)
    batch = {"image": torch.randn(3, 3, 28, 28, dtype=torch.float64), "before": BEFORE[name], "after": AFTER}
    fast, plain, other = LossFromIds(model)(batch), PlainStage2(model, width)(batch), twin(batch)
    assert float(fast.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    assert float(fast.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
    mine, expected = gradients(model, fast), gradients(model, plain)
    assert mine.keys() == expected.keys() == {key for key, value in model.named_parameters() if value.requires_grad}
    for key, value in expected.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-10, atol=1e-10 * float(value.abs().max() + 1))
    others = gradients(twin.model, other).values()
    norms, expected_norms = ([float(value.norm()) for value in values] for values in (mine.values(), others))
    assert sorted(norms) == pytest.approx(sorted(expected_norms), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LLMS)
def test_instructions_are_read_as_by_the_twin(name: str, training: bool) -> None:
    """In eval mode they are read without padding, and no text leaves the last layer."""
    torch.manual_seed(3)
    model = exact(fresh(name, with_text=True)).train(training)
    exact_norms(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    batch = {"image": torch.randn(3, 3, 28, 28, dtype=torch.float64), "before": BEFORE["t5"], "after": AFTER}
    fast, plain = LossFromIds(model)(batch), PlainStage2(model)(batch)
    assert float(fast.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    mine, expected = gradients(model, fast), gradients(model, plain)
    left_out = {key for key in expected if key.startswith("qformer.layers.2.text_ffn.")}
    assert mine.keys() == (expected.keys() if training else expected.keys() - left_out) and left_out
    for key, value in expected.items():
        found = mine.get(key, torch.zeros_like(value))
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10 * float(value.abs().max() + 1))
