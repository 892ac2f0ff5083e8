"""The text that the mini language models learn from."""

from __future__ import annotations

import re

import pytest

from lavis_lite.mini_world.captions import canonical_caption
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.questions import VALUES
from lavis_lite.mini_world.scenes import CELLS, HELD_OUT, Scene, SceneObject
from tools.documents import LENGTH, Document, Mix, blend, make_document, scene_of
from tools.phases import PHASES
from tools.turns import KINDS, ask

LAST = PHASES[-1][1]


def documents(count: int, mix: Mix = LAST) -> list[Document]:
    return [make_document(5, index, mix) for index in range(count)]


def test_same_number_same_document() -> None:
    made = documents(20)
    assert made == documents(20) and len(set(made)) == 20
    assert made != [make_document(6, index, LAST) for index in range(20)]


def test_contexts_are_plain_or_blended_and_captions_are_those_of_the_scene() -> None:
    found = documents(60)
    assert {isinstance(document.context, str) for document in found} == {True, False}
    captions = {index: canonical_caption(scene_of(5, index)) for index in range(60)}
    told = [index for index, document in enumerate(found) if document.turns[0][1] == captions[index]]
    assert 30 < len(told) < 60
    for index, document in enumerate(found):
        context = document.context if isinstance(document.context, str) else " ".join(sum(document.context, ()))
        for color in re.findall("red|orange|yellow|green|blue|purple|white|black", captions[index]):
            assert color in context


def test_a_document_has_as_many_turns_as_fit() -> None:
    for document in documents(40):
        texts = [document.context] if isinstance(document.context, str) else [str(len(document.context))]
        words = len(re.findall(r"\w+|[^\w\s]", " ".join([*texts, *(text for turn in document.turns for text in turn)])))
        assert len(document.turns) >= 4 and words + len(document.turns) <= LENGTH + 5


def test_most_objects_holds_and_all_numbers_occur() -> None:
    few = Mix(LAST.kinds, LAST.spare, objects=2)
    assert {document.objects for document in documents(40, few)} == {1, 2}
    assert {document.objects for document in documents(40)} == {1, 2, 3, 4}


def test_blended_groups_hold_every_object_with_its_place() -> None:
    for index in range(50):
        scene = scene_of(7, index)
        groups = blend(Dice(index), scene, 12)
        assert len(groups) == 12
        words = {tuple(part.split()) for part in canonical_caption(scene).split(", ")}
        whole = {group for group in groups if group in words}
        for name in words - whole:  # told in two groups, each with the object's place
            parts = [group for group in groups if group and set(group) <= set(name)]
            assert set().union(*parts) == set(name)
        assert all(any(set(group) <= set(name) for name in words) for group in groups if group)


def test_as_many_vectors_as_objects_are_one_for_each() -> None:
    scene = next(scene for scene in (scene_of(7, index) for index in range(20)) if len(scene.objects) == 4)
    assert {" ".join(group) for group in blend(Dice(1), scene, 4)} == set(canonical_caption(scene).split(", "))


def test_no_held_out_pair_is_ever_named() -> None:
    for kind in KINDS:
        for index in range(150):
            asked = ask(kind, Dice(index), scene_of(5, index))
            text = " ".join(asked or ())
            assert not any(re.search(rf"\b{color} {shape}|\b{shape}\b.* {color}\?", text) for color, shape in HELD_OUT)


def test_questions_come_in_several_prompts() -> None:
    prompts = [prompt for document in documents(80) for prompt, _ in document.turns if "?" in prompt]
    assert not any("{}" in prompt for prompt in prompts)
    bare = sum(prompt.endswith("?") for prompt in prompts) / len(prompts)
    assert 0.6 < bare < 0.85
    assert any(prompt.startswith("question: ") and prompt.endswith(" short answer:") for prompt in prompts)


# --- what is asked, answered a second time from the scene ------------------------------------------------------------
def named(scene: Scene, phrase: str) -> SceneObject:
    """The one object that a phrase names."""
    place = next((cell for cell in sorted(CELLS, key=len, reverse=True)
                  if re.search(rf"(at|on|in) the {cell}$", phrase)), None)
    words = set(phrase.split())
    fitting = [item for item in scene.objects if place in (None, CELLS[item.cell]) and all(
        getattr(item, name) in words or not words & set(VALUES[name]) for name in VALUES)]
    assert len(fitting) == 1, phrase
    return fitting[0]


def answered(scene: Scene, question: str) -> str:
    """The answer to a question of one of the easier kinds."""
    if found := re.fullmatch(r"what (size|texture) is the (.*)\?", question):
        return str(getattr(named(scene, found[2]), found[1]))
    if found := re.fullmatch(r"where is the (.*)\?", question):
        return CELLS[named(scene, found[1]).cell]
    if found := re.fullmatch(r"where are the (\w+)( objects)?\?", question):
        value = found[1] if found[2] else "cross" if found[1] == "crosses" else found[1][:-1]
        cells = [CELLS[item.cell] for item in sorted(scene.objects, key=lambda item: item.cell)
                 if value in item.kind]
        return ", ".join(cells) or "nowhere"
    if found := re.fullmatch(r"what (\w+) are the (.*) and the (.*)\?", question):
        return " and ".join(str(getattr(named(scene, part), found[1])) for part in found.groups()[1:])
    if found := re.fullmatch(r"do the (.*) and the (.*) have the same (\w+)\?", question):
        first, second = named(scene, found[1]), named(scene, found[2])
        return "yes" if getattr(first, found[3]) == getattr(second, found[3]) else "no"
    if found := re.fullmatch(r"is there an? (?:(\w+) object|(\w+))\?", question):
        return "yes" if any((found[1] or found[2]) in item.kind for item in scene.objects) else "no"
    raise AssertionError(question)


@pytest.mark.parametrize("kind", ["size", "where", "places", "pair", "alike", "present"])
def test_answers_are_true(kind: str) -> None:
    made = [(scene_of(5, index), ask(kind, Dice(index), scene_of(5, index))) for index in range(120)]
    turns = [(scene, turn) for scene, turn in made if turn is not None]
    assert len(turns) > 30
    for scene, (question, answer) in turns:
        assert answered(scene, question) == answer


def test_what_is_at_a_place_is_its_object_or_nothing() -> None:
    answers = set()
    for index in range(80):
        scene = scene_of(5, index)
        question, answer = ask("what", Dice(index), scene) or ("", "")
        place = re.fullmatch(r"what is (?:at|on|in) the (.*)\?", question)[1]  # type: ignore[index]
        told = dict((next(cell for cell in sorted(CELLS, key=len, reverse=True) if part.endswith(f" {cell}")), part)
                    for part in canonical_caption(scene).split(", "))
        assert answer == (told[place].removesuffix(f" {place}") if place in told else "nothing")
        answers.add(answer == "nothing")
    assert answers == {True, False}


def test_one_attribute_or_place_of_an_object_is_confirmed_or_denied() -> None:
    answers = []
    for index in range(300):
        scene = scene_of(5, index)
        turn = ask("attribute", Dice(index), scene)
        if turn is None:
            continue
        phrase, value = re.fullmatch(r"is the (.*?)(?: an?)? (\w+)\?", turn[0]).groups()  # type: ignore[union-attr]
        if any(value in values for values in VALUES.values()):
            true = value in named(scene, phrase).kind
        else:
            phrase, cell = re.fullmatch(r"is the (.*) (?:at|on|in) the (.*)\?", turn[0]).groups()  # type: ignore[union-attr]
            true = cell == CELLS[named(scene, phrase).cell]
        assert turn[1] == ("yes" if true else "no")
        answers.append(turn[1])
    assert len(answers) > 80 and 0.3 < answers.count("yes") / len(answers) < 0.7
