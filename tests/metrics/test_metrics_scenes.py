"""Scenes read out of captions, and what counts as right."""

from __future__ import annotations

import pytest

from lavis_lite.errors import DataError
from lavis_lite.metrics.scenes import is_exact, matched, read_objects, scene_scores
from lavis_lite.mini_world.captions import make_captions
from lavis_lite.mini_world.scenes import CELLS, make_scene


def test_every_wording_of_the_generator_is_read_as_its_scene() -> None:
    for split in ("train", "ood"):
        for number in range(60):
            scene = make_scene(3, split, number)
            truth = [{"size": item.size, "texture": item.texture, "color": item.color, "shape": item.shape,
                      "place": CELLS[item.cell]} for item in scene.objects]
            for caption in make_captions(scene):
                assert is_exact(read_objects(caption), truth), caption


def test_objects_of_free_text() -> None:
    assert read_objects("a tiny disc") == [{"texture": "solid", "size": "small", "shape": "circle"}]
    assert [item["shape"] for item in read_objects("red star blue box at the left")] == ["star", "square"]
    assert read_objects("there is nothing here") == read_objects("") == []


def test_objects_are_paired_in_the_best_way() -> None:
    truth = read_objects("small red star top left, large blue circle center")
    assert matched(read_objects("large blue circle center, small red star top left"), truth) == 10
    assert matched(read_objects("large blue circle center"), truth) == 5
    assert matched(read_objects("small blue star center, large red circle top left"), truth) == 6  # words bind
    assert matched([], truth) == 0


def test_scores() -> None:
    references = {1: ["small red star top left"], 2: ["small red star top left, large blue circle center"]}
    scores = scene_scores({1: "little red star upper left", 2: "small red star top left"}, references)
    assert scores == pytest.approx({"attribute_f1": 2 * 10 / (10 + 15), "attribute_precision": 1.0,
                                    "attribute_recall": 10 / 15, "exact": 0.5, "exact_1": 1.0, "exact_2": 0.0})
    assert scene_scores({1: ""}, references)["attribute_f1"] == 0.0
    many = ", ".join(["small red star top left"] * 40)
    assert scene_scores({1: many}, references)["attribute_precision"] == pytest.approx(5 / 200)


@pytest.mark.parametrize(("captions", "references", "words"), [
    ({}, {}, "no caption"), ({5: "x"}, {}, "image 5 has no reference"),
    ({5: "x"}, {5: ["a man on a horse"]}, "reads captions of the mini world"),
])
def test_what_cannot_be_scored(captions: dict, references: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        scene_scores(captions, references)
