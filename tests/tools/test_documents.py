"""The text that the mini language models learn from."""

from __future__ import annotations

import re

import pytest

from lavis_lite.mini_world.captions import canonical_caption
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import HELD_OUT
from tools.documents import KINDS, QUESTIONS, Document, blend, make_document, scene_of, split_turn


@pytest.mark.parametrize("vectors", [0, 12])
@pytest.mark.parametrize("kind", ["caption", "questions"])
def test_same_number_same_document(kind: str, vectors: int) -> None:
    made = [make_document(kind, 5, index, 4, vectors) for index in range(20)]
    assert made == [make_document(kind, 5, index, 4, vectors) for index in range(20)]
    assert len(set(made)) == 20
    assert made != [make_document(kind, 6, index, 4, vectors) for index in range(20)]


def test_copies_ask_for_the_plain_caption_of_the_scene_that_is_told() -> None:
    for index in range(50):
        document = make_document("caption", 5, index)
        (prompt, target), = document.turns
        assert prompt in ("a photo of", "caption:")
        assert target == canonical_caption(scene_of(5, "vit", index))
        assert document.context.endswith(".") and not document.blended
        for color in re.findall("red|orange|yellow|green|blue|purple|white|black", target):
            assert color in document.context


def test_most_objects_holds_and_all_numbers_occur() -> None:
    assert {make_document("caption", 5, index, 2).objects for index in range(40)} == {1, 2}
    assert {make_document("caption", 5, index).objects for index in range(40)} == {1, 2, 3, 4}


def test_blended_groups_hold_every_object_with_its_place() -> None:
    for index in range(50):
        scene = scene_of(7, "vit", index)
        groups = blend(Dice(index), scene, 12)
        assert len(groups) == 12
        words = {tuple(part.split()) for part in canonical_caption(scene).split(", ")}
        whole = {group for group in groups if group in words}
        for name in words - whole:  # told in two groups, each with the object's place
            parts = [group for group in groups if group and set(group) <= set(name)]
            assert set().union(*parts) == set(name)
        assert all(any(set(group) <= set(name) for name in words) for group in groups if group)


def test_as_many_vectors_as_objects_are_one_for_each() -> None:
    scene = next(scene for scene in (scene_of(7, "vit", index) for index in range(20)) if len(scene.objects) == 4)
    assert {" ".join(group) for group in blend(Dice(1), scene, 4)} == set(canonical_caption(scene).split(", "))


def test_no_held_out_pair_is_ever_told() -> None:
    for index in range(300):
        document = make_document(KINDS[index % 2], 5, index)
        text = " ".join([document.context, *(word for turn in document.turns for word in turn)])
        assert not any(re.search(rf"\b{color} {shape}", text) for color, shape in HELD_OUT)


def test_questions_stand_in_their_phrasing_with_the_answer_as_target() -> None:
    documents = [make_document("questions", 5, index) for index in range(60)]
    assert max(len(document.turns) for document in documents) == QUESTIONS
    prompts = [prompt for document in documents for prompt, _ in document.turns]
    assert all("?" in prompt and "{}" not in prompt for prompt in prompts)
    assert len({prompt.split("?")[1] for prompt in prompts}) > 2
    assert {"yes", "no", "1"} <= {target for document in documents for _, target in document.turns}


def test_repeats_say_the_words_again() -> None:
    document = make_document("repeat", 5, 3)
    assert document.turns == (("again:", document.context.removesuffix(".")),)


def test_captions_are_whole_or_in_two_parts_for_an_encoder() -> None:
    document = Document("caption", 1, (), "x.", (("a photo of", "small red circle left"),))
    assert split_turn(document, 0.1) == ("a photo of", "small red circle left")
    assert split_turn(document, 0.6) == ("a photo of", "small red circle left")
    assert split_turn(document, 0.95) == ("a photo of small red circle", "left")


def test_one_of_the_questions_for_an_encoder() -> None:
    document = Document("questions", 1, (), "x.", (("a?", "1"), ("b?", "2")))
    assert [split_turn(document, place) for place in (0.0, 0.49, 0.5, 0.99)] == [
        ("a?", "1"), ("a?", "1"), ("b?", "2"), ("b?", "2")]
