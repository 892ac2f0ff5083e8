"""Values that are NaN or infinite stop an evaluation, in every task that makes scores of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.capfilt.ranker import grouped
from lavis_lite.datasets.features.writer import FeatureJob, write_features
from lavis_lite.datasets.media.images import NO_STAMP
from lavis_lite.errors import CheckpointError
from lavis_lite.finite import check_finite
from lavis_lite.tasks.retrieval import RetrievalRunConfig, RetrievalTask
from tests.models.test_blip2_llm import images, model_of
from tests.tasks.fakes import TinyModel, dataset
from tests.tasks.test_retrieval_task import evaluate, pretrain, retrieval

ADVICE = r"(NaN or infinite|infinite)\. The model's weights are damaged or overflow in half precision"


def broken(*names: str, value: float = torch.nan) -> TinyModel:
    """A model whose parameters of these names are broken."""
    model = TinyModel()
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).fill_(value)
    return model


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("names", "words"), [
    (("query.bias",), "features of image 0 of the split are"), (("vision_proj.weight",), "image 0 of the split are"),
    (("text_proj.weight",), r"features of the text 'picture .*' are"),
    (("match.bias",), "match logits of image 0 with text"),
])
def test_retrieval(names: tuple[str, ...], words: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=f"retrieval: .*{words}.*{ADVICE}"):
        evaluate(retrieval(), dataset(6), model=broken(*names, value=value))
    if "match" not in names[0]:
        with pytest.raises(CheckpointError, match="retrieval"):
            evaluate(pretrain(), dataset(6), "test", broken(*names, value=value))


def test_one_broken_picture_is_named() -> None:
    split = dataset(6)
    split.pixels[4] = torch.nan
    with pytest.raises(CheckpointError, match="image 4 of the split are"):
        evaluate(RetrievalTask(RetrievalRunConfig(batch_size_eval=4, k_test=0)), split)


def test_losses_of_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = broken()
    monkeypatch.setattr(model, "forward", lambda samples: TinyModel.forward(
        model, {**samples, "image": samples["image"] * torch.nan}))
    with pytest.raises(CheckpointError, match="the losses of the batch that begins with image 0 are NaN"):
        evaluate(pretrain(valid_recall=False), dataset(6), model=model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_candidates_by_likelihood(value: float) -> None:
    model = model_of("t5")
    with torch.no_grad():
        model.language_projection.bias.fill_(value)
    samples = {"image": images(), "prompt": "what?", "text_input": ["a", "b", "c"]}
    with pytest.raises(CheckpointError, match=f"the likelihoods of sample 0 are {ADVICE}"):
        model.score_candidates({**samples, "prompt": "{}"}, ["yes", "no"])
    with pytest.raises(CheckpointError, match="likelihoods"):
        model.predict_answers(samples, inference_method="rank", answer_list=["yes", "no"])
    with pytest.raises(CheckpointError, match="the model's scores are NaN or infinite at token 1, in row 0"):
        model.generate(samples, max_new_tokens=2)


def test_likelihoods_of_absent_candidates_are_no_fault() -> None:
    found = model_of("t5").score_candidates({"image": images(2), "prompt": "q"}, [["yes"], ["yes", "no"]])
    assert found[0, 1] == -torch.inf and bool(found[1].isfinite().all())


class Folder:
    """Pictures by number."""

    def view(self, name: str, vis: Any) -> torch.Tensor:
        return torch.full((3, 2, 2), float(name))

    def stamp(self, name: str) -> tuple[int, int, int]:
        return NO_STAMP


def test_features_that_are_kept(tmp_path: Path) -> None:
    def encode(image: torch.Tensor) -> torch.Tensor:
        return torch.where(image == 2, torch.nan, image).flatten(2)

    job = FeatureJob(["0", "1", "2", "3"], Folder(), lambda image: image, encode, {}, tmp_path / "out", batch_size=2)
    with pytest.raises(CheckpointError, match=f"the vision encoder's features of '2' are {ADVICE}"):
        write_features(job, log=lambda text: None)
    assert not list((tmp_path / "out").glob("*.json"))


def test_captions_that_are_ranked() -> None:
    image, text = torch.ones(2, 1, 4), torch.ones(3, 4)
    text[2] = torch.nan
    assert grouped(image, text[:2], [1, 1]) == [[4.0], [4.0]]
    with pytest.raises(CheckpointError, match="a similarity of image 1 in the batch is NaN or infinite"):
        grouped(image, text, [1, 2])


def test_the_check() -> None:
    values = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert check_finite(values, str) is values and check_finite(values[:0], str).shape == (0, 2)
    with pytest.raises(CheckpointError, match="^1 The model's"):
        check_finite(torch.tensor([1.0, torch.inf]), str)
