"""projects/frozen: a prefix of pooled features, and a convolutional encoder that trains through the language model."""

from __future__ import annotations

import torch

from lavis_lite.checkpoints.weights import build_model
from lavis_lite.models.vision_language.config import VisionLanguageConfig
from projects.frozen.model import Prefix


def test_a_prefix_is_a_map_of_the_mean_and_padding_does_not_count() -> None:
    prefix = Prefix(None, 6, 10, vectors=3).double()
    features = torch.randn(2, 4, 6).double()
    whole = prefix(features)
    assert whole.shape == (2, 3, 10) and prefix.tokens == 3
    torch.testing.assert_close(whole[1].flatten(), prefix.projection(features[1].mean(0)), atol=1e-12, rtol=0)
    padded = torch.cat([features, torch.full((2, 2, 6), 9.0).double()], 1)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    torch.testing.assert_close(prefix(padded, mask), whole, atol=1e-12, rtol=0)


def test_gradients_pass_the_frozen_language_model_to_every_weight_of_the_encoder() -> None:
    torch.manual_seed(0)
    model = build_model(VisionLanguageConfig(
        arch="vision_language", vit_model="convolutions", vit_args={"name": "resnet10t"}, vit_weights="random",
        image_size=32, freeze_vit=False, connector={"type": "prefix"}, llm_model="mini/opt", load_pretrained=False))
    samples = {"image": torch.randn(2, 3, 32, 32), "text_input": ["a red circle", "a blue square"]}
    model(samples).loss.backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {name for name, value in model.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"vision_encoder", "connector"}
    assert model.vision_encoder.net.conv1[0].weight.grad.abs().sum() > 0  # the first layer
