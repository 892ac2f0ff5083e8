"""Samples that bring features: of unequal number, padded by rows of NaN that no objective sees, of several streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_lite.errors import ContractError, DataError
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.models.vision.config import registered_error
from lavis_lite.models.vision.encoder import Encoder
from lavis_lite.models.vision.given import GivenFeatures
from lavis_lite.registry import registry
from tests.models.stage1_helpers import TINY, NumberTokenizer, gradients, tiny_batch

WIDTH, COUNTS = 24, [4, 7, 1, 6, 3, 7]


def model_of(streams: dict[str, int] | None = None, padded: bool = True) -> Blip2Qformer:
    torch.manual_seed(0)
    qformer = QFormer(replace(TINY, padded_features=padded))
    model = Blip2Qformer(GivenFeatures(WIDTH, streams), qformer, NumberTokenizer(), embed_dim=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.temp.fill_(0.1)
    return model.double().eval()


def features(counts: list[int], width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(len(counts), max(COUNTS), WIDTH, dtype=torch.float64, generator=generator)
    out = torch.full((len(counts), width, WIDTH), float("nan"), dtype=torch.float64)
    for row, count in enumerate(counts):
        out[row, :count] = rows[row, :count]
    return out


def batch_of(image: Tensor) -> dict[str, Any]:
    return tiny_batch(len(COUNTS), dtype=torch.float64) | {"image": image}


def losses(model: Blip2Qformer, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(batch_of(image))
    return torch.stack([out.loss_itc, out.loss_itm, out.loss_lm]).detach(), gradients(model, out.loss)


def test_padding_changes_no_loss_and_no_gradient():
    model = model_of()
    plain, plain_gradients = losses(model, features(COUNTS, 7))
    padded, padded_gradients = losses(model, features(COUNTS, 19))
    torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(padded_gradients[name], gradient, rtol=0, atol=1e-10, msg=name)


def test_padded_equals_a_model_without_masks():
    full = [7] * len(COUNTS)
    plain, plain_gradients = losses(model_of(padded=False), features(full, 7))
    padded, padded_gradients = losses(model_of(), features(full, 12))
    torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)
    assert plain_gradients.keys() == padded_gradients.keys()


def test_each_sample_is_what_it_is_alone():
    model, image = model_of(), features(COUNTS, 9)
    together = model.extract_features(batch_of(image), "image").image_embeds
    for row, count in enumerate(COUNTS):
        alone = model.extract_features({"image": image[row:row + 1, :count]}, "image").image_embeds
        torch.testing.assert_close(together[row:row + 1], alone, rtol=0, atol=1e-12)
    assert model.generate({"image": image}, num_beams=2) == [
        model.generate({"image": image[row:row + 1, :count]}, num_beams=2)[0] for row, count in enumerate(COUNTS)]


def test_matching_sees_no_padding():
    model, image = model_of(), features(COUNTS, 9)
    texts = tiny_batch(len(COUNTS))["text_input"]
    together = model.match({"image": image, "text_input": texts})
    alone = [model.match({"image": image[row:row + 1, :count], "text_input": texts[row:row + 1]})
             for row, count in enumerate(COUNTS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_vectors_of_streams_are_learned_and_tell_streams_apart():
    model = model_of({"video": 4, "sound": 3})
    image = features([7] * len(COUNTS), 7)
    _, found = losses(model, image)
    assert found["vision_encoder.streams"].abs().sum() > 0
    swapped = torch.cat([image[:, 3:], image[:, :3]], 1)  # the same vectors, each in the other stream's place
    one = model_of()
    assert torch.allclose(one.forward_image(image)[0], one.forward_image(swapped)[0], atol=1e-12)
    assert not torch.allclose(model.forward_image(image)[0], model.forward_image(swapped)[0], atol=1e-3)


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"takes input of shape \(B, 7, 24\), not \(6, 5, 24\)"):
        model_of({"video": 4, "sound": 3})(batch_of(features([5] * len(COUNTS), 5)[:, :5]))
    with pytest.raises(DataError, match=r"takes input of shape \(B, any, 24\)"):
        model_of()(batch_of(torch.zeros(6, 5, 8, dtype=torch.float64)))


class Colours(Encoder):
    """An encoder of a project that breaks the contract as told."""

    def __init__(self, width: int | None = WIDTH, found: int = 8):
        super().__init__()
        if width is not None:
            self.width = width
        self.found = found

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image), 5, self.found)


def test_what_a_registered_encoder_lacks_is_told_before_data_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.encoder._classes, "colours", Colours)
    assert registered_error("colours", {}) is None
    assert registered_error("colours", {"width": None}) == (
        "vit_model", "Colours must set `width`, the width of its features, to a whole number, not None.")
    assert registered_error("colours", {"widht": 3}) == (
        "vit_args.widht", "Colours has no such parameter; did you mean 'width'?")


def test_features_of_another_shape_than_an_encoder_announces_name_the_encoder():
    model = model_of()
    model.vision_encoder = Colours()
    with pytest.raises(ContractError, match=r"Colours must return features of shape \(B, P, 24\).*not \(2, 5, 8\)"):
        model.encode_image(torch.zeros(2, 3, 8, 8))
