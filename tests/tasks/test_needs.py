"""What tasks need of models and data sets is said before anything is made, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_lite import engine
from lavis_lite.cli import train
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import RunConfig
from lavis_lite.datasets.builders.base import BaseDatasetBuilder
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder
from lavis_lite.datasets.protocols import Captions, Choices, ImageTable, Questions
from lavis_lite.datasets.qa import QAEvalDataset
from lavis_lite.errors import ConfigError, ContractError, DataError, ErrorList
from lavis_lite.models.blip2.llm import Blip2OPT
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.protocols import (
    Answerer,
    Captioner,
    FeatureExtractor,
    ImageCachingMatcher,
    Matcher,
    Ranker,
    Retriever,
    TextMeasurer,
)
from lavis_lite.registry import asked_by, lacking, need, registry
from lavis_lite.tasks.base import BaseTask, unmet_needs
from lavis_lite.tasks.vqa import VQARunConfig, VQATask


def test_the_packages_models_have_their_protocols() -> None:
    writes = Captioner, Answerer, Ranker, TextMeasurer
    sees = Retriever, Matcher, ImageCachingMatcher, FeatureExtractor
    assert [lacking(Blip2OPT, protocol) for protocol in writes] == [[]] * 4
    assert [lacking(Blip2Qformer, protocol) for protocol in (*sees, Captioner)] == [[]] * 5
    assert lacking(Blip2Qformer, Answerer) == ["predict_answers"]
    assert lacking(Blip2OPT, Matcher) == ["compute_itm"]


def test_a_class_is_asked_for_methods_and_an_instance_for_attributes_too() -> None:
    class Half:
        def __len__(self) -> int:
            return 0

        def question(self, index: int) -> dict[str, Any]:
            return {}

        @property
        def answer_list(self) -> list[str]:
            raise AssertionError("a property is not computed to know that it is there")

    assert asked_by(Choices) == ["answer_list", "extras", "has_answers", "multiple_choice", "question"]
    assert lacking(Half, Choices) == [] and lacking(Half(), Choices) == ["extras", "has_answers", "multiple_choice"]
    with pytest.raises(ContractError, match=r"the test needs Questions \(lavis_lite.*\); Half has no has_answers"):
        need(Half(), Questions, "the test")
    assert isinstance(nn.Linear(1, 1), Captioner) is False
    assert lacking(QAEvalDataset, Choices) == lacking(QAEvalDataset, ImageTable) == []


@pytest.mark.parametrize(("recipe", "options", "words"), [
    ("projects/blip2/stage1.yaml", ["run.task=captioning", "model.arch=blip2_image_text_matching"], None),
    ("projects/blip2/stage1.yaml", ["run.task=vqa"],
     ["datasets.mini_world_caption: run.task=vqa cannot evaluate CaptionEvalDataset, which lacks the protocol",
      "Builders of such data sets: image_classes, image_dialogue, image_qa, images_qa, video_dialogue, video_qa"]),
    ("projects/blip2/stage2_opt.yaml", ["run.task=retrieval"],
     ["model.arch=blip2_opt: run.task=retrieval cannot evaluate Blip2OPT, which has no compute_itm, forward_image",
      "Models that it can evaluate: blip2, ", "blip2_feature_extractor, blip2_image_text_matching",
      "Tasks that can evaluate this model: captioning"]),
    ("projects/blip2/mini_finetune_vqa.yaml", ["run.task=instruction_tuning", "model.arch=blip2"],
     ["model.arch=blip2: run.task=instruction_tuning cannot evaluate Blip2Qformer, which has no",
      "predict_answers", "blip2_t5_instruct"]),
])
def test_unmet_needs_of_recipes(recipe: str, options: list[str], words: Sequence[str] | None) -> None:
    composition = compose(recipe, options)
    found = unmet_needs(composition.config)
    if words is None:
        assert found == []
    else:
        (message,) = found
        assert [word for word in words if word not in message] == [], message


def test_no_recipe_asks_for_what_its_model_or_data_cannot_do() -> None:
    recipes = sorted(path for path in Path("projects").rglob("*.yaml") if path.parent.name != "base")
    found = {str(path): unmet_needs(compose(str(path), []).config) for path in recipes[::8]}
    assert len(found) > 15 and {path: text for path, text in found.items() if text} == {}


def test_the_command_line_says_it_before_any_data_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("nothing may be built")

    monkeypatch.setattr(engine, "assemble", fail)
    monkeypatch.setattr("lavis_lite.datasets.builders.images.prepare", fail)
    with pytest.raises(ErrorList, match=r"(?s)datasets.mini_world_caption: run.task=vqa cannot evaluate"):
        train.main(["--cfg-path", "projects/blip2/stage1.yaml", "--options", "run.task=vqa"])


def test_a_builder_with_a_build_of_its_own_is_not_judged_by_its_parents_data_sets() -> None:
    class Other(ImageQABuilder):
        def build(self, split: str, training: bool) -> Any:
            return []

    class Said(Other):
        eval_dataset = dict

    assert ImageQABuilder.evaluation_class() is QAEvalDataset
    assert not lacking(ImageCaptionBuilder.evaluation_class() or int, Captions)
    assert Other.evaluation_class() is BaseDatasetBuilder.evaluation_class() is None
    assert Said.evaluation_class() is dict


def test_a_router_needs_what_the_part_of_a_data_set_needs() -> None:
    cls = registry.get_task_class("instruction_tuning")
    task = cls(cls.config_class(task="instruction_tuning"))

    class Listed:
        has_answers, multiple_choice, extras, answer_list = True, True, ("choices",), ["a", "b"]

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {}

        def question(self, index: int) -> dict[str, Any]:
            return {"answers": ["a"]}

    data = Listed()
    for name, multiple_choice in (("MultipleChoiceTask", True), ("VQATask", False)):
        data.multiple_choice = multiple_choice
        part = task.part_for(data)
        assert type(part).__name__ == name
        part.before_evaluation(data, "val")
        with pytest.raises(ConfigError, match="cannot evaluate Blip2Qformer, which has no predict_answers"):
            part.check_model(Blip2Qformer)
        part.check_model(Blip2OPT)


def test_samples_without_a_key_are_an_error_that_names_task_and_key() -> None:
    samples = {"image": torch.zeros(1, 3, 2, 2), "text_input": ["?"], "index": torch.tensor([0])}
    with pytest.raises(ContractError, match=r"run.task=vqa: evaluation samples need .question_id.; .* have image"):
        VQATask(VQARunConfig()).predict(Blip2OPT.__new__(Blip2OPT), samples)
    assert VQATask(VQARunConfig()).has_samples({"bad_samples": [], "uniform": 0}, "index") is False


def test_names_of_methods_still_state_a_need() -> None:
    class Old(BaseTask):
        model_methods = ("translate",)

    with pytest.raises(ConfigError, match="which has no translate. Choose another task, or a model that has it"):
        Old(RunConfig()).check_model(Blip2OPT)


def test_a_data_set_of_another_kind_is_refused_when_it_is_built_too() -> None:
    with pytest.raises(DataError, match="split 'val': run.task=vqa cannot evaluate list, which lacks the protocol"):
        VQATask(VQARunConfig()).before_evaluation([], "val")  # type: ignore[arg-type]
