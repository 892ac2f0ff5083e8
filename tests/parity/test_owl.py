"""mPLUG-Owl's release on a stand-in with its names and small sizes: every tensor is used once, both ways, and what the
model computes equals the published equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm, linear, silu

from lavis_lite.checkpoints.formats.owl import from_owl
from lavis_lite.checkpoints.load import is_known_layout, load_state
from lavis_lite.checkpoints.metadata import metadata_of, typed_section
from lavis_lite.checkpoints.report import seems_to_be
from lavis_lite.checkpoints.weights import build_model
from lavis_lite.errors import CheckpointError
from lavis_lite.models.vision_language.model import VisionLanguage
from tests.models.language.tiny import BOS, EOS, PAD, WORDS, byte_tokenizer

WIDTH, HEADS, INNER, QUERIES, WORD, SIDE, PATCH = 16, 4, 20, 3, 24, 28, 14
CONFIG: dict[str, Any] = {
    "model_type": "mplug-owl", "num_query_tokens": QUERIES,
    "vision_config": {"hidden_size": WIDTH, "intermediate_size": 36, "num_hidden_layers": 2,
                      "num_attention_heads": HEADS, "image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6},
    "visual_abstractor_config": {"hidden_size": WIDTH, "encoder_hidden_size": WIDTH, "num_hidden_layers": 2,
                                 "num_attention_heads": 2, "intermediate_size": INNER},
    "text_config": {"model_type": "llama", "hidden_size": WORD, "intermediate_size": 20, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "max_position_embeddings": 96, "vocab_size": WORDS, "pad_token_id": PAD,
                    "bos_token_id": BOS, "eos_token_id": EOS}}
Weights = dict[str, Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as modeling_mplug_owl.py makes them."""
    def layer(name: str, out: int, inside: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}

    def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    found: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, QUERIES, WIDTH), "abstractor.vit_eos": (1, 1, WORD),
        "vision_model.embeddings.cls_token": (1, 1, WIDTH), "vision_model.embeddings.position_embedding": (1, 5, WIDTH),
        "vision_model.embeddings.patch_embed.weight": (WIDTH, 3, PATCH, PATCH),
        **norm("vision_model.embeddings.pre_layernorm"), **norm("vision_model.post_layernorm"),
        **layer("abstractor.visual_fc", WORD, WIDTH),
        "language_model.model.embed_tokens.weight": (WORDS, WORD), "language_model.model.norm.weight": (WORD,),
        "language_model.lm_head.weight": (WORDS, WORD)}
    for number in range(2):
        block = f"vision_model.encoder.layers.{number}"
        found |= {**layer(f"{block}.self_attn.query_key_value", 3 * WIDTH, WIDTH),
                  **layer(f"{block}.self_attn.dense", WIDTH, WIDTH), **layer(f"{block}.mlp.fc1", 36, WIDTH),
                  **layer(f"{block}.mlp.fc2", WIDTH, 36), **norm(f"{block}.input_layernorm"),
                  **norm(f"{block}.post_attention_layernorm")}
        cross = f"abstractor.encoder.layers.{number}.crossattention"
        found |= {**norm(f"{cross}.norm1"), **norm(f"{cross}.normk"), **norm(f"{cross}.output.norm2"),
                  **norm(f"{cross}.output.mlp.ffn_ln", INNER), **layer(f"{cross}.output.out_proj", WIDTH, WIDTH),
                  **layer(f"{cross}.output.mlp.w1", INNER, WIDTH), **layer(f"{cross}.output.mlp.w3", INNER, WIDTH),
                  **layer(f"{cross}.output.mlp.w2", WIDTH, INNER)}
        for part in ("query", "key", "value"):
            found |= layer(f"{cross}.attention.{part}", WIDTH, WIDTH)
        words = f"language_model.model.layers.{number}"
        found |= {f"{words}.self_attn.{part}_proj.weight": (WORD, WORD) for part in "qkvo"}
        found |= {f"{words}.mlp.{part}_proj.weight": (20, WORD) for part in ("gate", "up")}
        found |= {f"{words}.mlp.down_proj.weight": (WORD, 20), f"{words}.input_layernorm.weight": (WORD,),
                  f"{words}.post_attention_layernorm.weight": (WORD,),
                  f"{words}.self_attn.rotary_emb.inv_freq": (6,)}
    return found


def stand_in() -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}


class Published:
    """The release's encoder and abstractor in plain operations."""

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: value.double() for name, value in weights.items()}

    def layer(self, name: str, values: Tensor) -> Tensor:
        return linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, values: Tensor, eps: float) -> Tensor:
        return layer_norm(values, values.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """float[B,S,H,d], float[B,T,H,d] twice -> float[B,S,H*d]."""
        scores = torch.einsum("bshd,bthd->bhst", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), value).flatten(2)

    def encode(self, image: Tensor) -> Tensor:
        """float[B,3,S,S] -> float[B,P,Dv]: the class token, the patches, behind the last norm."""
        start = "vision_model.embeddings"
        patches = conv2d(image, self.weights[f"{start}.patch_embed.weight"], stride=PATCH).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.weights[f"{start}.cls_token"].expand(len(image), -1, -1), patches], 1)
        hidden = self.norm(f"{start}.pre_layernorm", hidden + self.weights[f"{start}.position_embedding"], 1e-6)
        for number in range(2):
            block = f"vision_model.encoder.layers.{number}"
            given = self.norm(f"{block}.input_layernorm", hidden, 1e-6)
            joined = self.layer(f"{block}.self_attn.query_key_value", given)
            query, key, value = joined.unflatten(-1, (HEADS, 3, -1)).unbind(3)
            hidden = hidden + self.layer(f"{block}.self_attn.dense", self.attend(query, key, value))
            inner = self.layer(f"{block}.mlp.fc1", self.norm(f"{block}.post_attention_layernorm", hidden, 1e-6))
            hidden = hidden + self.layer(f"{block}.mlp.fc2", inner * torch.sigmoid(1.702 * inner))
        return self.norm("vision_model.post_layernorm", hidden, 1e-6)

    def abstract(self, features: Tensor) -> Tensor:
        """float[B,P,Dv] -> float[B,Q+1,D]."""
        queries = self.weights["query_tokens"].expand(len(features), -1, -1)
        for number in range(2):
            cross = f"abstractor.encoder.layers.{number}.crossattention"
            own = self.norm(f"{cross}.norm1", queries, 1e-5)
            seen = torch.cat([own, self.norm(f"{cross}.normk", features, 1e-5)], 1)
            query, key, value = (self.layer(f"{cross}.attention.{part}", given).unflatten(-1, (2, -1))
                                 for part, given in (("query", own), ("key", seen), ("value", seen)))
            added = own + self.layer(f"{cross}.output.out_proj", self.attend(query, key, value))
            given = self.norm(f"{cross}.output.norm2", added, 1e-5)
            inner = silu(self.layer(f"{cross}.output.mlp.w1", given)) * self.layer(f"{cross}.output.mlp.w3", given)
            queries = added + self.layer(f"{cross}.output.mlp.w2",
                                         self.norm(f"{cross}.output.mlp.ffn_ln", inner, 1e-6))
        vectors = self.layer("abstractor.visual_fc", queries)
        return torch.cat([vectors, self.weights["abstractor.vit_eos"].expand(len(vectors), -1, -1)], 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As the hub has the release."""
    byte_tokenizer(before=True).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(stand_in(), tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def load(folder: Path) -> VisionLanguage:
    section = typed_section(metadata_of(folder).model).replaced(load_pretrained=True, pretrained=str(folder))
    model = build_model(section)
    assert isinstance(model, VisionLanguage)
    return model.eval()


def test_a_folder_of_the_release_computes_what_was_published(folder: Path) -> None:
    model, published = load(folder), Published(stand_in())
    image = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    features = published.encode(image)
    model.vision_encoder.vit.double()
    torch.testing.assert_close(model.vision_encoder.vit.forward_features(image), features, rtol=0, atol=1e-12)
    vectors = model.connector.double()(features)
    assert vectors.shape == (2, QUERIES + 1, WORD)
    torch.testing.assert_close(vectors, published.abstract(features), rtol=0, atol=1e-12)
    assert model.template == "mplug_owl"


def test_every_tensor_is_used_once(folder: Path) -> None:
    theirs, model = stand_in(), load(folder)
    report = load_state(model, theirs, "release")
    own = model.state_dict()
    assert report.loaded == sorted(own) and not report.ignored and not report.frozen_missing
    assert sorted(report.unused) == [f"language_model.model.layers.{number}.self_attn.rotary_emb.inv_freq"
                                     for number in range(2)]
    found = from_owl(theirs, HEADS)
    assert found.unknown == [] and found.tensors.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in found.tensors.items())


def test_the_abstractor_alone_fills_the_connector(folder: Path) -> None:
    model = load(folder)
    wanted = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("connector.")}
    with torch.no_grad():
        for value in model.connector.parameters():
            value.zero_()
    part = {name: value for name, value in stand_in().items() if name.startswith(("abstractor.", "query_tokens"))}
    assert is_known_layout(part) and "an mPLUG-Owl; a model of arch vision_language" in seems_to_be(part)
    load_state(model, part, "abstractor", allowed_missing=[".*"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(("part", "key", "value", "told"), [
    ("vision_config", "hidden_act", "gelu", r"vision_config.hidden_act is 'gelu' \(here 'quick_gelu'\)"),
    ("visual_abstractor_config", "encoder_hidden_size", 32, r"encoder_hidden_size is 32 \(here 16\)"),
    ("visual_abstractor_config", "layer_norm_eps", 1e-5, r"layer_norm_eps is 1e-05 \(here 1e-06\)"),
    ("text_config", "model_type", "bloom", r"text_config.model_type is 'bloom' \(here 'llama'\)")])
def test_what_cannot_be_carried_is_said(folder: Path, part: str, key: str, value: Any, told: str) -> None:
    config = {**CONFIG, part: {**CONFIG[part], key: value}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=told):
        metadata_of(folder)


def test_a_vision_encoder_with_other_heads_is_told_by_its_shapes(folder: Path) -> None:
    model = load(folder)
    for name in ("weight", "bias"):  # 48 rows are no whole number of 5 heads' queries, keys and values
        assert len(from_owl(stand_in(), 5).tensors[f"vision_encoder.vit.blocks.0.attn.qkv.{name}"]) == 3 * WIDTH
    model.vision_encoder.vit.blocks[0].attn.num_heads = 5
    wider = {**stand_in(), "vision_model.encoder.layers.0.self_attn.query_key_value.bias": torch.zeros(51)}
    with pytest.raises(CheckpointError, match=r"attn\.qkv\.bias.*51"):
        load_state(model, wider, "release")


def test_a_part_that_is_no_object_is_told(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vision_config": [1]}))
    with pytest.raises(CheckpointError, match="vision_config must be an object, not list"):
        metadata_of(folder)


def test_a_release_over_bloom_and_the_second_version_are_refused(folder: Path) -> None:
    words = {"language_model.transformer.word_embeddings_layernorm.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="is built on BLOOM"):
        from_owl({**stand_in(), **words}, HEADS)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mplug_owl2"}))
    with pytest.raises(CheckpointError, match="is of a 'mplug_owl2', not of a BLIP-2"):
        metadata_of(folder)
