"""Samples that share pictures: every picture is encoded once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis_lite.errors import DataError
from lavis_lite.models.blip2.base import ImageBatch, frame_index
from lavis_lite.models.blip2.config import OPT, T5, T5_INSTRUCT, VICUNA_INSTRUCT
from lavis_lite.models.blip2.llm import Blip2LLM
from tests.models.test_blip2_llm import CAPTIONS, images, model_of
from tests.models.test_stage2_twins import exact_norms

ROWS = torch.tensor([0, 0, 1, 0, 1])
QUESTIONS = [*CAPTIONS, "is it", "how many of them"]
ANSWERS = ["yes", "no", "a dog", "x"]
KINDS = [("opt", OPT, False), ("opt", VICUNA_INSTRUCT, True), ("t5", T5, False), ("t5", T5_INSTRUCT, True)]


def double(name: str, style: Any, instruct: bool) -> Blip2LLM:
    """A model whose every number is float64."""
    model = model_of(name, style, instruct)
    model.language_model.model.double()
    exact_norms(model.language_model.model)
    return model.double()


def pairs(frames: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same questions with shared and with repeated pictures."""
    pictures = images(2, frames).double()
    more = {"text_input": QUESTIONS, "prompt": QUESTIONS, "few_shot_samples": {"text_input": ["who?"]}}
    key = "image" if frames is None else "video"
    return {key: pictures, "image_rows": ROWS, **more}, {key: pictures[ROWS], **more}


@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize(("name", "style", "instruct"), KINDS)
def test_shared_pictures_are_repeated_pictures(name: str, style: Any, instruct: bool, frames: int | None) -> None:
    model = double(name, style, instruct).eval()
    shared, repeated = pairs(frames)
    seen: list[int] = []
    model.vision_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = []
    for samples in (shared, repeated):
        asked = {key: value for key, value in samples.items() if key != "text_input"}
        scores = model.score_candidates(asked, ANSWERS)
        found.append((scores, model.predict_class(asked, [ANSWERS, *[ANSWERS[:2]] * 4], n_segments=2),
                      model.generate(asked, num_beams=2, num_captions=2, max_new_tokens=4),
                      model.generate(asked, use_nucleus_sampling=True, seeds=[1, 2, 3, 4, 5], max_new_tokens=4),
                      model.predict_answers(samples, max_len=4, prompt="Q: {} A:"),
                      model.predict_answers(samples, inference_method="rank", answer_list=ANSWERS)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-11)
    assert [row.tolist() for row in found[0][1]] == [row.tolist() for row in found[1][1]]
    assert found[0][2:] == found[1][2:] and len(found[0][2]) == 10 and len(found[0][3]) == 5
    assert len(set(found[0][4])) > 1  # the questions matter
    times = 1 if frames is None else frames
    assert seen == [2 * times] * 6 + [5 * times] * 6


@pytest.mark.parametrize("instruct", [False, True])
def test_features_and_losses_may_be_shared_too(instruct: bool) -> None:
    model = double("opt", OPT, instruct)
    features = model.vision_encoder(images(2).double()).detach()
    losses = [model({"image": image, **rows, "text_input": QUESTIONS, "text_output": QUESTIONS}).loss
              for image, rows in ((features, {"image_rows": ROWS}), (images(2).double()[ROWS], {}))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    losses[0].backward()
    assert float(model.query_tokens.grad.abs().sum()) > 0


def test_the_pictures_of_samples() -> None:
    assert len(ImageBatch.of({"image": images(2), "image_rows": ROWS})) == 5 == len(ImageBatch(images(5)))
    assert frame_index(torch.tensor([1, 0, 1]), 2).tolist() == [2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(("rows", "words"), [
    (torch.tensor([0, 2]), "from 0 to 1, the indices of the 2 images; they go from 0 to 2"),
    (torch.tensor([-1, 0]), "go from -1 to 0"), (torch.tensor([0.0, 1.0]), "must be int64"),
    ([0, 1], "must be int64"), (torch.tensor([[0, 1]]), "must be int64")])
def test_rows_that_are_no_places(rows: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"image_rows .*{words}"):
        ImageBatch.of({"image": images(2), "image_rows": rows})
