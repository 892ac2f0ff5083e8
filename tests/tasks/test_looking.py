"""Reports that show where the model looked: which samples, for which words, and what the model was asked."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_lite import load_model_and_preprocess
from lavis_lite.errors import ConfigError
from lavis_lite.models.base import BaseModel
from lavis_lite.report.sample import Picture, ReportSample
from lavis_lite.tasks.captioning import CaptioningRunConfig, CaptioningTask
from lavis_lite.tasks.vqa import VQARunConfig, VQATask

SCENE = "lavis_lite/assets/mini/scene.jpg"


def content() -> bytes:
    with open(SCENE, "rb") as file:
        return file.read()


class Split:
    """Two questions about the packaged picture."""

    def __init__(self, processor: Any) -> None:
        self.vis_processor = processor

    def sample(self, index: int) -> dict[str, Any]:
        return {"image": self.vis_processor(Image.open(io.BytesIO(content()))), "index": index, "question_id": index,
                "text_input": ("what color is the circle?", "how many objects are there?")[index]}


def report(answers: list[str]) -> list[ReportSample]:
    return [ReportSample(10 + number, answer, picture=Picture("scene.jpg", content) if answer != "hidden" else None)
            for number, answer in enumerate(answers)]


def test_the_first_samples_show_each_word(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, _ = load_model_and_preprocess("blip2_t5_instruct", "mini", is_eval=True)
    task = VQATask(VQARunConfig(prompt="question: {} short answer:", report_attention=1))
    rows = [{"id": 10 + number, "index": number, "answer": "x"} for number in (1, 0)]
    split: Any = Split(images["eval"])
    asked: list[Any] = []
    whole = type(model).gradcam
    monkeypatch.setattr(type(model), "gradcam", lambda self, samples: asked.append(samples) or whole(self, samples))
    first, second = task.illustrated(model, rows, split, report(["white circle", "2"]))
    assert [one.text for one in first.attention] == ["white", "circle"] and second.attention == ()
    assert asked[0]["prompt"] == ["question: what color is the circle? short answer:"]
    seen = first.attention[0].picture.load()
    assert isinstance(seen, Image.Image) and seen.size == (64, 64)
    pixels = np.asarray(seen.convert("L"), float)
    assert pixels[48:56, 26:34].mean() > 4 * pixels[:32].mean(), "the circle is not the bright part"
    whole_split = replace(task.cfg, report_attention=5)
    none, _ = VQATask(whole_split).illustrated(model, rows, split, report(["hidden", "2"]))
    assert none.attention == ()


def test_nothing_is_computed_unless_it_is_asked_for() -> None:
    samples = report(["white", "2"])
    assert list(VQATask(VQARunConfig()).illustrated(None, [], None, samples)) == samples  # type: ignore[arg-type]


def test_captions_keep_their_prompt_and_long_answers_have_no_pictures() -> None:
    model, images, _ = load_model_and_preprocess("blip2_opt", "mini", is_eval=True)
    task = CaptioningTask(CaptioningRunConfig(prompt="a photo of", report_attention=9))
    rows = [{"id": 10, "index": 0}, {"id": 11, "index": 1}]
    split: Any = Split(images["eval"])
    first, long = task.illustrated(model, rows, split, report(["a circle", "red " * 300]))
    assert [one.text for one in first.attention] == ["a", "circle"] and long.attention == ()
    assert task.asked({"image": torch.zeros(1), "text_input": ["x"]}).keys() == {"image", "prompt"}


def test_a_model_that_does_not_show_where_it_looks_is_refused_at_once() -> None:
    class Blind(BaseModel):
        def predict_answers(self, samples: Any, **options: Any) -> list[str]:
            return []

    with pytest.raises(ConfigError, match="has no attention, gradcam"):
        VQATask(VQARunConfig(report_attention=3)).check_model(Blind)
    VQATask(VQARunConfig()).check_model(Blind)
    with pytest.raises(ConfigError, match="run.report_attention: must be at least 0, not -1"):
        VQATask(VQARunConfig(report_attention=-1))
