"""Stage 1 as a classifier (ITC, ITM), and videos: the frames as one sequence of patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_lite.errors import ConfigError
from lavis_lite.models.blip2.stage1 import Blip2ImageTextMatching, Blip2Qformer
from tests.models.stage1_helpers import tiny_model

CLASSES = ["7", "8 9", "10 11 12"]
PROMPTS = ["3 4", "5", "3 4"]
OWN = [["7", "8"], ["9"], ["10", "7", "11"]]


def model_of(cls: type[Blip2Qformer]) -> Any:
    return tiny_model(cls=cls).double().eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pair_score(model: Any, image: torch.Tensor, text: str) -> float:
    """The plain way: one image and one text."""
    pair = {"image": image[None], "text_input": [text]}
    if model.ranking_head == "itc":
        return float((model.match(pair, match_head="itc") / model.temp).detach())
    return float(model.match(pair, match_head="itm").log_softmax(1)[0, 1])


@pytest.mark.parametrize("cls", [Blip2Qformer, Blip2ImageTextMatching])
@pytest.mark.parametrize("segments", [1, 3])
def test_scores_are_those_of_single_pairs(cls: type[Blip2Qformer], segments: int) -> None:
    model, batch = model_of(cls), images()
    found = model.score_candidates({"image": batch, "prompt": PROMPTS}, CLASSES, segments)
    expected = torch.tensor([[pair_score(model, image, f"{prompt} {name}") for name in CLASSES]
                             for image, prompt in zip(batch, PROMPTS, strict=True)])
    assert found.shape == (3, 3) and torch.allclose(found, expected, atol=1e-5)
    assert (found.std(1) > 0.01).all()


@pytest.mark.parametrize("cls", [Blip2Qformer, Blip2ImageTextMatching])
def test_each_sample_may_have_its_own_candidates_and_share_its_image(cls: type[Blip2Qformer]) -> None:
    model, batch, rows = model_of(cls), images(2), torch.tensor([1, 0, 1])
    shared = model.score_candidates({"image": batch, "image_rows": rows, "prompt": "3"}, OWN)
    alone = model.score_candidates({"image": batch[rows], "prompt": "3"}, OWN)
    assert torch.equal(shared.isinf(), torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0]]).bool())
    assert torch.allclose(shared, alone, atol=1e-6)
    with pytest.raises(ConfigError, match="n_segments must be at least 1"):
        model.score_candidates({"image": batch}, CLASSES, 0)


def test_the_frames_of_a_video_are_one_sequence_of_patches() -> None:
    model, frames = model_of(Blip2Qformer), images(6).reshape(2, 3, 3, 4, 4)
    video = frames.transpose(1, 2)
    _, features = model.forward_image(video)
    patches = torch.cat([model.forward_image(frames[:, number])[1] for number in range(3)], 1)
    assert torch.equal(features, patches)
    still = model.forward_image(frames[:, 0])
    assert all(torch.equal(one, two) for one, two in zip(model.forward_image(video[:, :, :1]), still, strict=True))
    one = model({"video": video, "text_input": ["7 8", "9"]})
    two = model({"video": video.flip(2), "text_input": ["7 8", "9"]})
    assert one.loss.isfinite() and torch.allclose(one.loss_itc, two.loss_itc)
