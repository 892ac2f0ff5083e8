"""Evaluation over questions: their order, pictures that are read once per batch, ranks, faults and controls."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_lite.config.schema import ProcessorPair, RunConfig
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.builders.questions import ImageQABuilder, ImageQAConfig
from lavis_lite.datasets.controls import AblatedImages
from lavis_lite.datasets.loading.loader import eval_loader
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.qa import QAEvalDataset
from lavis_lite.errors import DataError

IMAGES = [0, 1, 2, 0, 1, 0, 3, 1, 0, 2]
"""of each question; image 1 has the longest"""


@pytest.fixture
def questions(section: Any, coco_folder: Path) -> QAEvalDataset:
    """Ten questions about four images."""
    rows = [{"image": f"{image}.png", "question": f"What is {'very ' * (number if image == 1 else image)}{number}?",
             "question_id": 50 + number, "answer": ["yes"]} for number, image in enumerate(IMAGES)]
    (coco_folder / "qa.json").write_text(json.dumps(rows))
    cfg = section(coco_folder, {"val": "qa.json"}, ImageQAConfig)
    cfg.text_processor = ProcessorPair(train={"name": "blip_question"}, eval={"name": "blip_question"})
    found = ImageQABuilder("q", cfg).build("val", training=False)
    assert isinstance(found, QAEvalDataset)
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were read, as they come."""
    names: list[str] = []
    real = ImageFolder.view

    def view(self: ImageFolder, name: str, *rest: Any) -> Any:
        names.append(name)
        return real(self, name, *rest)

    monkeypatch.setattr(ImageFolder, "view", view)
    return names


def batches(dataset: Any, rank: int = 0, ranks: int = 1, share: bool = True, **more: Any) -> list[dict[str, Any]]:
    run = RunConfig(device="cpu", **{"batch_size_eval": 4, "num_workers": 0, **more})
    return list(eval_loader(dataset, run, rank, ranks, share))


def repeated(batch: dict[str, Any]) -> torch.Tensor:
    """float[B,3,H,W]: the picture of every sample."""
    image: torch.Tensor = batch["image"]
    return image[batch["image_rows"]] if "image_rows" in batch else image


def test_questions_about_an_image_stand_together_the_longest_first(questions: QAEvalDataset) -> None:
    assert list(questions.evaluation_order()) == [1, 4, 7, 6, 2, 9, 0, 3, 5, 8]
    assert list(AblatedImages(questions, "blind").evaluation_order()) == list(questions.evaluation_order())


def test_other_samples_stay_as_they_stand(coco_section: Any, decoded: list[str]) -> None:
    dataset = ImageCaptionBuilder("c", coco_section).build("val", training=False)
    (batch,) = batches(dataset)
    assert batch["index"].tolist() == [0, 1, 2, 3] and "image_rows" not in batch and len(decoded) == 4


def test_what_else_is_read_counts_as_length(questions: QAEvalDataset) -> None:
    rows = [{**row, "context": "", "choices": []} for row in questions.table.skim()]
    rows[0]["choices"], rows[2]["context"] = ["a" * 100, "b" * 100], "c" * 150
    questions.table = RowTable([(0, place, row) for place, row in enumerate(rows, 1)], ["qa.json"])
    questions.extras = ("choices", "context")
    assert list(questions.evaluation_order()) == [0, 3, 5, 8, 2, 9, 1, 4, 7, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_brings_each_picture_once(questions: QAEvalDataset, decoded: list[str], workers: int) -> None:
    shared = batches(questions, num_workers=workers)
    if not workers:
        assert decoded == ["1.png", "3.png", "2.png", "0.png", "0.png"]
    assert [batch["index"].tolist() for batch in shared] == [[1, 4, 7, 6], [2, 9, 0, 3], [5, 8]]
    assert [batch["image_rows"].tolist() for batch in shared] == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0]]
    assert [len(batch["image"]) for batch in shared] == [2, 2, 1] and shared[0]["image_rows"].dtype == torch.int64
    for batch, plain in zip(shared, batches(questions, share=False), strict=True):
        assert batch.keys() - {"image_rows"} == plain.keys() and torch.equal(repeated(batch), plain["image"])
        assert all(torch.equal(batch[key], plain[key]) for key in ("uniform", "question_id", "image_id", "index"))
        assert batch["text_input"] == plain["text_input"]


def test_a_batch_of_different_pictures_is_an_ordinary_one(questions: QAEvalDataset) -> None:
    assert all("image_rows" not in batch for batch in batches(questions, batch_size_eval=1))
    apart = [batch for batch in batches(questions, batch_size_eval=2) if "image_rows" not in batch]
    assert [batch["index"].tolist() for batch in apart] == [[7, 6]] and len(apart[0]["image"]) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_question_is_on_one_rank(questions: QAEvalDataset, ranks: int) -> None:
    parts = [batches(questions, rank, ranks) for rank in range(ranks)]
    assert Counter(row for part in parts for batch in part for row in batch["question_id"].tolist()) == Counter(
        range(50, 60))
    dealt = [parts[number % ranks][number // ranks]["index"].tolist() for number in range(3)]
    assert dealt == [[1, 4, 7, 6], [2, 9, 0, 3], [5, 8]]


def test_a_bad_image_is_bad_for_all_its_questions(questions: QAEvalDataset, coco_folder: Path,
                                                  decoded: list[str]) -> None:
    (coco_folder / "images" / "1.png").write_bytes(b"<html>not found</html>")
    found = {}
    for share in (True, False):
        decoded.clear()
        found[share] = batches(questions, share=share, on_bad_sample="skip")
        assert decoded.count("1.png") == (1 if share else 3)
    for shared, plain in zip(found[True], found[False], strict=True):
        assert shared["index"].tolist() == plain["index"].tolist() and torch.equal(repeated(shared), plain["image"])
        assert shared.get("bad_samples") == plain.get("bad_samples")
    records = found[True][0]["bad_samples"]
    assert [record["row"].rpartition(":")[2] for record in records] == ["2", "5", "8"]
    assert "image_rows" not in found[True][0] and "is not an image of a known format" in records[2]["reason"]
    assert set(batches(questions, on_bad_sample="skip", batch_size_eval=3)[0]) == {"bad_samples"}
    with pytest.raises(DataError, match=r"qa.json:2: .*1.png is not an image.*on_bad_sample=skip"):
        batches(questions)


@pytest.mark.parametrize("control", ["wrong_image", "blind"])
def test_controls_share_what_they_show(questions: QAEvalDataset, control: Any, decoded: list[str]) -> None:
    shown = AblatedImages(questions, control)
    shared = batches(shown)
    assert len(decoded) == 5
    assert [batch["image_rows"].tolist() for batch in shared] == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0]]
    for batch in shared:
        plain = [shown[index] for index in batch["index"].tolist()]
        assert torch.equal(repeated(batch), torch.stack([sample["image"] for sample in plain]))
        assert batch["text_input"] == [sample["text_input"] for sample in plain]
        true = torch.stack([questions[index]["image"] for index in batch["index"].tolist()])
        assert not any(torch.equal(*both) for both in zip(true, repeated(batch), strict=True))


def test_pictures_that_are_changed_at_random_are_not_shared(questions: QAEvalDataset, decoded: list[str]) -> None:
    plain = questions.vis_processor
    questions.vis_processor = lambda image, rng: plain(image, rng) + rng.random()
    assert not questions.shares_pictures
    found = batches(questions)
    assert len(decoded) == 10 and all("image_rows" not in batch for batch in found)
    assert not torch.equal(found[0]["image"][0], found[0]["image"][1])
