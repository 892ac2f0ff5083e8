"""Annotation files of the mini world in the layouts that COCO captions and VQA v2 publish.

Identifiers: ``image_id`` is unique over all splits. ``id`` of a caption is the image id times ten plus the caption's
index; ``question_id`` is made the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lavis_lite.mini_world.captions import make_captions
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.questions import TYPES, Question, make_questions
from lavis_lite.mini_world.scenes import IMAGE_SIZE, Scene

QUESTIONS_PER_IMAGE = {"train": 3}
"""Questions for each picture of a split; the other splits get one of every type that fits the scene."""
ANSWERS_PER_QUESTION = 10
"""VQA v2 has ten answers per question, which its accuracy needs; a generated scene has one truth, so they agree."""

_LICENSE = {"name": "BSD-3-Clause", "url": ""}


@dataclass(frozen=True)
class SceneRecord:
    """Everything written about one picture."""

    scene: Scene
    file_name: str
    captions: list[str]
    questions: list[Question]


def file_name(split: str, index: int) -> str:
    """Path of a picture under the ``images`` folder."""
    return f"{split}/{index:06d}.jpg"


def describe_scene(scene: Scene) -> SceneRecord:
    """All words about one scene."""
    count = QUESTIONS_PER_IMAGE.get(scene.split, len(TYPES))
    name = file_name(scene.split, scene.index)
    return SceneRecord(scene, name, make_captions(scene), make_questions(scene, count))


def with_swapped_captions(records: list[SceneRecord], share: float, seed: int) -> list[SceneRecord]:
    """A share of the pictures, drawn by the seed, with the captions of the next one of them, as web texts may be."""
    drawn = Dice(seed, len(records)).shuffled(range(len(records)))[:round(share * len(records))]
    captions = {here: records[there].captions for here, there in zip(drawn, drawn[1:] + drawn[:1], strict=True)}
    return [replace(record, captions=captions.get(index, record.captions)) for index, record in enumerate(records)]


def caption_file(records: list[SceneRecord], info: dict[str, Any]) -> dict[str, Any]:
    """COCO captions layout: info, licenses, images, annotations."""
    images = [
        {"id": r.scene.image_id, "file_name": r.file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE, "license": 0}
        for r in records
    ]
    annotations = [
        {"id": r.scene.image_id * 10 + index, "image_id": r.scene.image_id, "caption": caption}
        for r in records
        for index, caption in enumerate(r.captions)
    ]
    return {"info": info, "licenses": [{"id": 0, **_LICENSE}], "images": images, "annotations": annotations}


def question_file(records: list[SceneRecord], info: dict[str, Any], split: str) -> dict[str, Any]:
    """VQA v2 questions layout."""
    questions = [
        {"question_id": r.scene.image_id * 10 + index, "image_id": r.scene.image_id, "question": question.text}
        for r in records
        for index, question in enumerate(r.questions)
    ]
    return {**_vqa_head(info, split), "task_type": "Open-Ended", "questions": questions}


def answer_file(records: list[SceneRecord], info: dict[str, Any], split: str) -> dict[str, Any]:
    """VQA v2 annotations layout; ``question_type`` is one of ``questions.TYPES``."""
    annotations = [
        {
            "question_id": r.scene.image_id * 10 + index,
            "image_id": r.scene.image_id,
            "question_type": question.type,
            "answer_type": _answer_type(question.answer),
            "multiple_choice_answer": question.answer,
            "answers": [
                {"answer_id": number, "answer": question.answer, "answer_confidence": "yes"}
                for number in range(1, ANSWERS_PER_QUESTION + 1)
            ],
        }
        for r in records
        for index, question in enumerate(r.questions)
    ]
    return {**_vqa_head(info, split), "annotations": annotations}


def scene_file(records: list[SceneRecord], info: dict[str, Any]) -> dict[str, Any]:
    """Ground truth: every object of every scene with its attributes, position and exact geometry."""
    return {"info": info, "scenes": [{**r.scene.to_json(), "file_name": r.file_name} for r in records]}


def _vqa_head(info: dict[str, Any], split: str) -> dict[str, Any]:
    return {"info": info, "license": _LICENSE, "data_type": "mini_world", "data_subtype": split}


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"
