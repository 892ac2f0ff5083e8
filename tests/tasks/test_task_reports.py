"""What tasks tell of single samples: scores that add up to the split's, references, pictures, strips."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lavis_lite.datasets.controls import AblatedImages
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.evaluation.resume import is_plain
from lavis_lite.tasks.captioning import CaptioningRunConfig, CaptioningTask
from lavis_lite.tasks.pretrain import ImageTextPretrainTask, PretrainRunConfig
from lavis_lite.tasks.retrieval import RetrievalRunConfig, RetrievalTask
from lavis_lite.tasks.vqa import KEPT, VQARunConfig, VQATask, likeliest
from lavis_lite.tasks.writing import counted, pictures_of
from tests.tasks.fakes import TinyModel, batches, dataset
from tests.tasks.test_writing_tasks import Questions, batch


def mean(samples: Any, name: str) -> float:
    values = [sample.scores[name] for sample in samples if name in sample.scores]
    return sum(values) / len(values)


def test_questions_have_their_part_in_every_accuracy() -> None:
    task = VQATask(VQARunConfig(baselines=False))
    rows = [{"id": 10 + n, "index": n, "answer": answer} for n, answer in enumerate(["red", "yes", "yes"])]
    scores = task.score(None, rows, Questions(), "test")  # type: ignore[arg-type]
    samples = task.report(rows, Questions(), "test")
    assert [(sample.id, sample.right, sample.group) for sample in samples] == [
        (10, True, "color"), (11, True, "existence"), (12, False, "existence")]
    assert samples[2].references == ["no ×10"] and samples[2].prompt == "is it?" and samples[0].picture is None
    for name in scores.keys() - {"agg_metrics"}:
        assert mean(samples, name) == pytest.approx(scores[name]), name
    unscored = VQATask(VQARunConfig(report_metric=False)).report(rows, Questions(), "test")
    assert unscored[0].scores == {} and unscored[0].right is None


class Scorer(torch.nn.Module):
    """Likelihoods of candidates by place; the second question's are told to it."""

    def score_candidates(self, samples: dict[str, Any], candidates: list[str], n_segments: int) -> torch.Tensor:
        assert samples["prompt"] == ["Q: what color?", "Q: is it?"] and candidates == ["yes", "red"] and n_segments == 1
        return torch.tensor([[-3.0, -1.0], [-1.0, -1.0]])

    def predict_answers(self, samples: dict[str, Any], **options: Any) -> list[str]:
        return ["red"] * len(samples["text_input"])


def test_ranked_answers_are_there_with_their_likelihoods() -> None:
    task, model = VQATask(VQARunConfig(inference_method="rank", prompt="Q: {}", baselines=False)), Scorer()
    task.before_evaluation(Questions(), "val")
    rows = task.predict(model, batch(0, 1))
    assert [row["answer"] for row in rows] == ["red", "yes"]
    first, second = task.report(rows, Questions(), "val")
    assert [(one.text, one.value, one.right) for one in first.candidates] == [("red", -1.0, True), ("yes", -3.0, False)]
    assert first.candidates[0].share == pytest.approx(0.8808, abs=1e-4) and second.candidates[1].share == 0.5
    assert all(map(is_plain, rows))  # so that they are kept for an evaluation that is killed
    assert first.rank is None and first.right and len(likeliest([str(n) for n in range(40)], [0.0] * 40)) == KEPT
    with_examples = task.predict(model, {**batch(0, 1), "few_shot_samples": []})
    assert "likeliest" not in with_examples[0] and with_examples[1]["answer"] == "red"


def captions(*references: list[str]) -> SimpleNamespace:
    return SimpleNamespace(captions=list(references), has_text=True, references=references.__getitem__,
                           domain=lambda index: "near-domain")


def test_captions_have_scores_by_image() -> None:
    truth = "a small solid red circle at the top left"
    split = captions([truth], [truth])
    task = CaptioningTask(CaptioningRunConfig(caption_metrics=["scene"]))
    rows = [{"id": 1, "index": 0, "caption": truth}, {"id": 2, "index": 1, "caption": "a blue circle"}]
    scores, samples = task.score(None, rows, split, "test"), task.report(rows, split, "test")  # type: ignore[arg-type]
    assert [sample.right for sample in samples] == [True, False] and samples[0].references == [truth]
    assert mean(samples, "exact") == scores["exact"] and samples[0].scores["image_attribute_f1"] == 1.0
    assert 0 < samples[1].scores["image_attribute_f1"] < 1
    split.has_text = False
    bare = task.report(rows, split, "test")
    assert bare[0].references == () and bare[0].scores == {} and bare[0].right is None


def test_scores_of_n_grams_are_those_that_the_split_has() -> None:
    split = captions(["A dog runs.", "a brown dog"], ["two boats at sea", "boats"], ["a man rides a wave"])
    task = CaptioningTask(CaptioningRunConfig())
    said = ["a dog runs", "", "a man on a wave"]
    rows = [{"id": 9 - n, "index": n, "caption": text} for n, text in enumerate(said)][::-1]
    scores, samples = task.score(None, rows, split, "test"), task.report(rows, split, "test")  # type: ignore[arg-type]
    assert [sample.id for sample in samples] == [7, 8, 9] and samples[2].references == ["A dog runs.", "a brown dog"]
    for name in ("CIDEr", "ROUGE_L"):
        assert mean(samples, name) == pytest.approx(scores[name], abs=1e-9) and samples[1].scores[name] == 0
    assert samples[2].score == samples[2].scores["CIDEr"] > 0 and samples[2].group == "near-domain"


@pytest.mark.parametrize("kind, prefix", [(RetrievalTask, ""), (ImageTextPretrainTask, "itm_")])
def test_every_query_of_retrieval_is_there_with_its_rank(kind: Any, prefix: str) -> None:
    model, split = TinyModel().eval(), dataset(9)
    cfg = RetrievalRunConfig if kind is RetrievalTask else PretrainRunConfig
    task = kind(cfg(k_test=4, batch_size_eval=4, test_splits=["test"]))
    task.before_evaluation(split, "test")
    with torch.no_grad():
        rows = [row for batch in batches(split, 4) for row in task.predict(model, batch)]
        scores = task.score(model, rows, split, "test")
    samples = task.report(rows, split, "test")
    assert len(samples) == 9 + len(split.text) and len({sample.id for sample in samples}) == len(samples)
    for way in ("txt", "img"):
        for k in (1, 5, 10):
            name = f"{prefix}{way}_r{k}"
            assert mean(samples, name) == pytest.approx(scores[name]), name
    for sample in samples:
        assert len(sample.candidates) == 5 and sample.right == (sample.rank == 1)
        right = [place for place, one in enumerate(sample.candidates, 1) if one.right]
        assert right[:1] == ([sample.rank] if 1 <= (sample.rank or 0) <= 5 else [])
    assert task.report(rows, split, "test") is None


class Pictures:
    """Three images in a folder."""

    sample_keys = ("image",)

    def __init__(self, folder: Path) -> None:
        self.folder = ImageFolder(folder)
        for n in range(3):
            Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / f"{n}.png")

    def __len__(self) -> int:
        return 3

    def image_name(self, index: int) -> str:
        return f"{index}.png"

    def sample(self, index: int, rng: Any = None, picture: Any = None) -> dict[str, Any]:
        return {"image": picture}

    def picture(self, index: int, rng: Any = None) -> Any:
        return torch.zeros(3)


def test_pictures_are_those_that_the_model_saw(tmp_path: Path) -> None:
    split = Pictures(tmp_path)
    plain = pictures_of(split)(1)
    assert plain is not None and plain.name == "1.png" and plain.load() == (tmp_path / "1.png").read_bytes()
    other = AblatedImages(split, "wrong_image")
    shown = [pictures_of(other)(index) for index in range(3)]
    assert [one and one.name for one in shown] == [f"{other.others[f'{index}.png']}.png" for index in range(3)]
    assert pictures_of(AblatedImages(split, "blind"))(0) is None and pictures_of(SimpleNamespace())(0) is None
    assert counted(["no", "yes", "yes"]) == ["yes ×2", "no"]
