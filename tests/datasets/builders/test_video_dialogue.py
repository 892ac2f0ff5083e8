"""Dialogues about videos in AVSD's layout: turns of training, the last turn of an evaluation, clips or arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_lite.config.compose import compose_dataset
from lavis_lite.datasets.annotations.dialogues import UNDISCLOSED
from lavis_lite.errors import DataError
from lavis_lite.mini_world.avi import motion_jpeg
from lavis_lite.mini_world.render import encode_jpeg
from lavis_lite.registry import registry
from lavis_lite.tasks.ranking import DialogueTask

TURNS = [{"question": "who is there?", "answer": "a man with a cup"}, {"question": "does he sit", "answer": "no"},
         {"question": "what happens then?", "answer": "he leaves the room"}]
SIZE = {"name": "alpro_video_eval", "image_size": 32, "n_frms": 2}


def avsd(last: str) -> dict[str, Any]:
    turns = [*TURNS[:2], {**TURNS[2], "answer": last}]
    return {"type": "x", "version": "0.1", "dialogs": [
        {"image_id": name, "caption": "a man", "summary": "a man leaves", "dialog": turns} for name in ("7UPGT", "B2")]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("avsd/annotations", "avsd/features/i3d_rgb", "charades/videos"):
        (tmp_path / folder).mkdir(parents=True)
    for split, last in (("train", "he leaves the room"), ("val", "he leaves the room"), ("test", UNDISCLOSED)):
        (tmp_path / f"avsd/annotations/{split}.json").write_text(json.dumps(avsd(last)))
    for name, length in (("7UPGT", 3), ("B2", 5)):
        frames = [encode_jpeg(np.full((32, 32, 3), shade, np.uint8)) for shade in (0, 200)]
        (tmp_path / f"charades/videos/{name}.mp4").write_bytes(motion_jpeg(frames, 32, 32))
        np.save(tmp_path / f"avsd/features/i3d_rgb/{name}.npy", np.ones((length, 4), np.float32))
    return tmp_path


def build(split: str, *options: str, kind: str = "default") -> Any:
    found = compose_dataset("avsd_dialogue", [f"datasets.avsd_dialogue.type={kind}", *options])
    assert not found.errors
    section = found.config.datasets["avsd_dialogue"]
    return registry.get_builder_class(section.builder)("avsd_dialogue", section).build(split, split == "train")


def small(split: str, *options: str) -> Any:
    return build(split, *(f"datasets.avsd_dialogue.vis_processor.{mode}={json.dumps(SIZE)}"
                          for mode in ("train", "eval")), *options)


def test_every_turn_is_learned_after_what_was_said_before(cache: Path) -> None:
    dataset = small("train")
    assert len(dataset) == 6 and dataset[0]["video"].shape == (3, 2, 32, 32)
    assert [dataset[at]["text_output"] for at in range(3)] == [turn["answer"] for turn in TURNS]
    assert dataset[1]["text_input"] == "Q: who is there? A: a man with a cup\ndoes he sit"
    assert dataset[1]["caption"] == "a man"


def test_an_evaluation_asks_the_last_turn_unless_all_are_wanted(cache: Path) -> None:
    dataset = small("val")
    assert [dataset.question(at)["question_id"] for at in range(len(dataset))] == ["7UPGT-3", "B2-3"]
    assert dataset.question(0)["answers"] == ["he leaves the room"] and dataset[0]["text_input"].count("Q: ") == 2
    assert [row["question_id"] for row in dataset.table.skim()] == ["7UPGT-3", "B2-3"]
    every = small("val", "datasets.avsd_dialogue.asked=all")
    assert len(every) == 6 and every.content_hash() != dataset.content_hash()


def test_an_undisclosed_answer_is_no_answer(cache: Path) -> None:
    dataset = small("test")
    assert len(dataset) == 2 and not dataset.has_answers
    assert UNDISCLOSED not in json.dumps(dataset.question(0))


def test_arrays_stand_in_place_of_the_clips(cache: Path) -> None:
    shapes = [build(split, kind="features")[0]["image"].shape for split in ("train", "val")]
    assert shapes == [(64, 4), (64, 4)]


def test_turns_of_no_known_layout_are_named(cache: Path) -> None:
    broken = avsd("x")
    broken["dialogs"][1]["dialog"][1] = {"question": ["who"], "answer": "no"}
    (cache / "avsd/annotations/val.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"val.json:2: round 2: question and answer must be texts, or numbers of texts"):
        small("val")


def test_the_task_that_ranks_names_the_one_that_writes(cache: Path) -> None:
    task = DialogueTask(DialogueTask.config_class(task="dialogue"))
    with pytest.raises(DataError, match=r"no candidates to rank(.|\n)*run.task=vqa run.vqa_metrics=\[cider"):
        task.before_evaluation(small("val"), "val")
