"""Question data sets out of a section: samples for training and evaluation, instructions, controls."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import FileConfig, ProcessorPair
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.controls import AblatedImages
from lavis_lite.datasets.loading.loader import collate
from lavis_lite.datasets.qa import draw
from lavis_lite.errors import ConfigError, DataError

ROWS = [{"image": f"{number // 2}.png", "question": f"What is {number}?!", "question_id": 50 + number,
         "image_id": number // 2, "answer": ["red", "red", "blue"] if number % 2 else ["yes"], "answer_type": "other"}
        for number in range(8)]
INSTRUCTION = {"name": "instruction", "templates": ["Question: {} Answer:", "{}"]}


@pytest.fixture
def qa_section(section: Any, coco_folder: Path) -> Any:
    """(**more) -> a section over flat lists with train, val and (no answers) test."""
    (coco_folder / "qa.json").write_text(json.dumps(ROWS))
    bare = [{key: value for key, value in row.items() if key != "answer"} for row in ROWS]
    (coco_folder / "bare.json").write_text(json.dumps(bare))

    def make(**more: Any) -> ImageQAConfig:
        cfg = section(coco_folder, {"train": "qa.json", "val": "qa.json", "test": "bare.json"}, ImageQAConfig, **more)
        cfg.text_processor = ProcessorPair(train={"name": "blip_question"}, eval={"name": "blip_question"})
        return cfg

    return make


def test_training_samples(qa_section: Any) -> None:
    dataset = ImageQABuilder("q", qa_section()).build("train", training=True)
    sample = dataset.sample(1, random.Random(0))
    assert set(sample) == set(dataset.sample_keys) == set(ImageQABuilder.sample_keys)
    assert sample["text_input"] == "what is 1?" and sample["text_output"] in ("red", "blue")
    assert sample["answers"] == ["red", "blue"] and sample["weights"] == pytest.approx([2 / 3, 1 / 3])
    assert sample["question_id"] == 51 and dataset[0]["image_id"] == dataset[1]["image_id"] != dataset[2]["image_id"]
    assert dataset.location(1).endswith("qa.json:2")
    batch = collate([dataset[0], dataset[1]])
    assert batch["text_output"] == ["yes", "red"] and batch["question_id"].tolist() == [50, 51]
    assert [len(row) for row in batch["weights"]] == [1, 2] and batch["image"].shape == (2, 3, 16, 16)
    assert len(pickle.loads(pickle.dumps(dataset))) == 8


def test_answers_are_drawn_by_weight_from_the_samples_numbers() -> None:
    counts = Counter(draw(["a", "", "b"], [3, 5, 1], random.Random(seed)) for seed in range(2000))
    assert set(counts) == {"a", "b"} and counts["a"] == pytest.approx(1500, abs=80)
    assert draw(["x", "y"], [1, 1], None) == "x" and draw(["", "y"], [3, 1], None) == "y"
    assert draw(["x", "y"], [1, 1], random.Random(4)) == draw(["x", "y"], [1, 1], random.Random(4))


def test_evaluation_samples_keep_their_answers_back(qa_section: Any) -> None:
    dataset = ImageQABuilder("q", qa_section()).build("val", training=False)
    sample = dataset[3]
    assert set(sample) == set(dataset.sample_keys) == {"image", "text_input", "question_id", "image_id", "index",
                                                       "instance_id"}
    assert (sample["question_id"], sample["image_id"], sample["index"]) == (53, 1, 3)
    assert dataset.has_answers and dataset.question(3)["answers"] == ["red", "red", "blue"]
    assert dataset.answer_list == ["yes", "red"]
    assert list(dataset.majority_pairs())[:2] == [("What is 0?!", "yes"), ("What is 1?!", "red")]
    bare = ImageQABuilder("q", qa_section()).build("test", training=False)
    assert not bare.has_answers and bare.question(0)["answers"] == []


def test_confidences_stay_with_their_answers(qa_section: Any, coco_folder: Path) -> None:
    given = [("no", "yes"), ("two ", "maybe"), ("two", "no"), ("two", "yes"), ("one", "no")]
    records = [{"answer": answer, "answer_confidence": own} for answer, own in given]
    (coco_folder / "qa.json").write_text(json.dumps([{**ROWS[0], "answers": records}]))
    asked = ImageQABuilder("q", qa_section()).build("val", training=False).question(0)
    pairs = list(zip(asked["answers"], asked["confidences"], strict=True))
    assert pairs == [("two", "maybe"), ("two", "no"), ("two", "yes"), ("no", "yes"), ("one", "no")]
    with_ids = [{**record, "answer_id": place} for place, record in enumerate(records)]
    (coco_folder / "qa.json").write_text(json.dumps([{**ROWS[0], "answers": with_ids}]))
    assert "confidences" not in ImageQABuilder("q", qa_section()).build("val", training=False).question(0)


def test_instructions_are_drawn_in_training_and_fixed_in_evaluation(qa_section: Any) -> None:
    builder = ImageQABuilder("q", qa_section(instruction=ProcessorPair(train=INSTRUCTION)))
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    drawn = {train.sample(0, random.Random(seed))["text_input"] for seed in range(20)}
    assert drawn == {"Question: what is 0? Answer:", "what is 0?"}
    assert {val.sample(0, random.Random(seed))["text_input"] for seed in range(20)} == {"Question: what is 0? Answer:"}
    own = ProcessorPair(train=INSTRUCTION, eval={"name": "instruction", "templates": ["Q {}"]})
    assert ImageQABuilder("q", qa_section(instruction=own)).build("val", False)[0]["text_input"] == "Q what is 0?"


def test_questions_can_be_what_is_learned(qa_section: Any) -> None:
    ask = ProcessorPair(train={"name": "instruction", "templates": ["Ask for {}:"]})
    sample = ImageQABuilder("q", qa_section(learn="question", instruction=ask)).build("train", training=True)[0]
    assert (sample["text_input"], sample["text_output"]) == ("Ask for yes:", "what is 0?")


def test_captions_after_an_instruction(coco_section: Any) -> None:
    coco_section.instruction = ProcessorPair(train={"name": "instruction", "templates": "caption"})
    builder = ImageCaptionBuilder("c", coco_section)
    train, val = builder.build("train", training=True), builder.build("val", training=False)
    sample = train.sample(0, random.Random(1))
    assert sample["text_output"] == "picture 0, caption 0" and sample["text_input"][0].isupper()
    assert set(sample) == set(train.sample_keys) and set(val[0]) == set(val.sample_keys)
    assert val[0]["prompt"] == "A short image caption:" and val[0]["text_input"] == "picture 8, caption 0"


def test_one_file_for_all_splits(qa_section: Any, coco_folder: Path) -> None:
    (coco_folder / "qa.json").write_text(json.dumps([{**row, "split": "a" if at < 5 else "b"}
                                                     for at, row in enumerate(ROWS)]))
    cfg = qa_section(split_column="split", split_values={"train": "a", "held": "b"})
    cfg.build_info.annotations = {"train": cfg.build_info.annotations["train"]}
    builder = ImageQABuilder("q", cfg)
    assert builder.splits() == ["train", "held"]
    assert (len(builder.build("train", True)), len(builder.build("held", False))) == (5, 3)
    assert builder.build("val", False) is None


def test_candidates_of_a_file_and_faults_that_name_their_key(qa_section: Any, coco_folder: Path) -> None:
    (coco_folder / "list.json").write_text('["a", "b"]')
    cfg = qa_section(answer_list=FileConfig(storage=str(coco_folder / "list.json")))
    assert ImageQABuilder("q", cfg).build("val", False).answer_list == ["a", "b"]
    (coco_folder / "list.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="list.json: must be a JSON list of answers"):
        ImageQABuilder("q", cfg).build("val", False)
    with pytest.raises(ConfigError, match=r"datasets.q.columns.nonsense"):
        ImageQABuilder("q", qa_section(columns={"nonsense": "x"}))
    wrong = ProcessorPair(train={"name": "instruction", "templates": "vqq"})
    with pytest.raises(ConfigError, match=r"datasets.q.instruction.train: .*did you mean"):
        ImageQABuilder("q", qa_section(instruction=wrong)).build("train", True)


def test_training_answers_are_not_fetched_for_a_baseline(qa_section: Any) -> None:
    cfg = qa_section()
    cfg.build_info.annotations["train"] = FileConfig(url="https://example.invalid/train.json", storage="no/train.json")
    assert list(ImageQABuilder("q", cfg).build("val", False).majority_pairs()) == []


# controls -------------------------------------------------------------------------------------------------------------
def test_wrong_images_are_a_ring_without_fixed_points(qa_section: Any) -> None:
    dataset = ImageQABuilder("q", qa_section()).build("val", training=False)
    control = AblatedImages(dataset, "wrong_image")
    again = AblatedImages(dataset, "wrong_image")
    shown = []
    for index in range(len(control)):
        true, wrong = dataset[index], control[index]
        assert torch.equal(wrong["image"], again[index]["image"])
        others = [place for place in range(8) if torch.equal(dataset[place]["image"], wrong["image"])]
        assert others and index not in others
        assert all(true[key] == wrong[key] for key in true if key != "image")
        shown.append(others[0])
    assert sorted(shown) == [0, 0, 2, 2, 4, 4, 6, 6] and control.location(2) == dataset.location(2)


def test_blank_images(coco_section: Any) -> None:
    dataset = ImageCaptionBuilder("c", coco_section).build("val", training=False)
    assert float(AblatedImages(dataset, "blind")[0]["image"].abs().sum()) == 0 < float(dataset[0]["image"].abs().sum())
    assert not torch.equal(AblatedImages(dataset, "wrong_image")[0]["image"], dataset[0]["image"])


def test_what_cannot_be_controlled(qa_section: Any, coco_folder: Path) -> None:
    (coco_folder / "qa.json").write_text(json.dumps(ROWS[:2]))
    with pytest.raises(DataError, match="at least two different images"):
        AblatedImages(ImageQABuilder("q", qa_section()).build("val", training=False), "wrong_image")
    with pytest.raises(DataError, match="gives its pictures apart; .* has no .*Set run.control=none"):
        AblatedImages([1, 2], "blind")
