"""Captions and questions are true: an independent reader parses the words and compares them with the scene."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from lavis_lite.mini_world.captions import MAX_TOKENS, canonical_caption, count_tokens, make_captions
from lavis_lite.mini_world.questions import TYPES, make_questions
from lavis_lite.mini_world.scenes import HELD_OUT, Scene, SceneObject, make_scene

SIZE = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
SHAPE = {"circle": "circle", "disc": "circle", "square": "square", "box": "square", "cross": "cross", "plus": "cross"}
SHAPE |= {name: name for name in ("triangle", "star", "heart")}
COLOR = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
ROW = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
COLUMN = {"left": 0, "right": 2}
NOUN = "|".join([*SHAPE, "object"])
DESCRIPTION = (
    rf"(?P<size>{'|'.join(SIZE)})? ?(?P<texture>striped|solid|plain)? ?(?P<color>{'|'.join(COLOR)})? ?"
    rf"(?P<shape>{NOUN})(?:es|s)?\b"
)
PLACE = r"(?:top|upper|bottom|lower|left|right|center|middle)(?: (?:left|right|middle))?"

Read = tuple[str, str, str, str, int, int]


def cell_of(words: str) -> tuple[int, int]:
    """Row and column of a place such as ``upper left`` or ``lower middle``."""
    parts = words.split()
    row = next((ROW[part] for part in parts if part in ROW), 1)
    return row, next((COLUMN[part] for part in parts if part in COLUMN), 1)


def read_caption(caption: str) -> tuple[Counter[Read], list[tuple[Read, str, Read]]]:
    """The objects that a caption tells of, and the relations it states between neighbours in the text."""
    relation = re.search(rf"({PLACE}(?: corner)?) is (left of|right of|above|below) ", caption)
    first_place = re.match(rf"{PLACE} a ", caption) is not None
    text = re.sub(r" is (left of|right of|above|below) ", " , ", caption)
    found: list[Read] = []
    for part in re.split(r",| and ", text):
        match = re.search(DESCRIPTION, part)
        assert match and match["size"] and match["color"], caption
        rest = part[: match.start()] if first_place else part[match.end() :]
        place = re.search(PLACE, rest)
        assert place, caption
        texture = "striped" if match["texture"] == "striped" else "solid"
        found.append((SIZE[match["size"]], texture, match["color"], SHAPE[match["shape"]], *cell_of(place[0])))
    stated = [(found[0], relation[2], found[1])] if relation else []
    return Counter(found), stated


def truth(scene: Scene) -> Counter[Read]:
    """The objects of a scene in the reader's form."""
    return Counter((o.size, o.texture, o.color, o.shape, o.cell // 3, o.cell % 3) for o in scene.objects)


def holds(first: tuple[int, int], relation: str, second: tuple[int, int]) -> bool:
    """Whether a relation between two (row, column) places is true."""
    row, column = first[0] - second[0], first[1] - second[1]
    return {"left of": column < 0, "right of": column > 0, "above": row < 0, "below": row > 0}[relation]


def test_every_caption_tells_the_whole_truth() -> None:
    related = 0
    for split in ("train", "ood"):
        for index in range(600):
            scene = make_scene(7, split, index)
            captions = make_captions(scene)
            assert len(captions) == 5
            for caption in captions:
                objects, relations = read_caption(caption)
                assert objects == truth(scene), caption
                assert all(holds(a[4:], name, b[4:]) for a, name, b in relations), caption
                related += len(relations)
    assert related > 300


def test_the_reader_notices_a_lie() -> None:
    scene = make_scene(7, "test", 0)
    caption = canonical_caption(scene)
    color = scene.objects[0].color
    lie = caption.replace(color, next(other for other in COLOR if other != color), 1)
    assert read_caption(caption)[0] == truth(scene)
    assert read_caption(lie)[0] != truth(scene)


def test_captions_fit_and_tell_unseen_scenes_apart() -> None:
    captions = [make_captions(make_scene(7, "test", index)) for index in range(500)]
    assert max(count_tokens(text) for texts in captions for text in texts) <= MAX_TOKENS
    owners: dict[str, set[int]] = {}
    for number, texts in enumerate(captions):
        for text in texts:
            owners.setdefault(text, set()).add(number)
    unique = sum(len(owners[text]) == 1 for texts in captions for text in texts)
    assert unique >= 0.98 * 2500
    assert len({text for texts in captions for text in texts[1:]}) > 0.85 * 2000


def pick(scene: Scene, phrase: str) -> list[SceneObject]:
    """The objects that a phrase of a question fits."""
    match = re.search(DESCRIPTION, phrase)
    assert match, phrase
    fits = [o for o in scene.objects if not match["size"] or o.size == match["size"]]
    fits = [o for o in fits if not match["texture"] or o.texture == match["texture"]]
    fits = [o for o in fits if not match["color"] or o.color == match["color"]]
    fits = [o for o in fits if match["shape"] == "object" or o.shape == match["shape"]]
    place = re.search(rf"(?:at|on|in) the ({PLACE})", phrase)
    return [o for o in fits if not place or (o.cell // 3, o.cell % 3) == cell_of(place[1])]


def only(scene: Scene, phrase: str) -> SceneObject:
    """The one object that a phrase fits."""
    fits = pick(scene, phrase)
    assert len(fits) == 1, (phrase, scene)
    return fits[0]


def answer(scene: Scene, text: str) -> str:
    """Answer a question by parsing it, without the generator's help."""
    if match := re.fullmatch(r"what color is the (.+)\?", text):
        return only(scene, match[1]).color
    if match := re.fullmatch(r"what (?:shape is|is the shape of) the (.+)\?", text):
        return only(scene, match[1]).shape
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return str(len(pick(scene, match[1])))
    if match := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if pick(scene, match[1]) else "no"
    if match := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return "yes" if len(pick(scene, match[1])) > len(pick(scene, match[2])) else "no"
    if match := re.fullmatch(r"do the (.+) and the (.+) have the same (\w+)\?", text):
        first, second = only(scene, match[1]), only(scene, match[2])
        return "yes" if getattr(first, match[3]) == getattr(second, match[3]) else "no"
    return answer_relation(scene, text)


def answer_relation(scene: Scene, text: str) -> str:
    """Answer a question on where two objects stand."""
    match = re.fullmatch(
        r"is the (.+?) (left or right of|above or below|left of|right of|above|below) the (.+)\?", text
    )
    assert match, text
    first, second = (divmod(only(scene, match[group]).cell, 3) for group in (1, 3))
    if match[2] == "left or right of":
        return "left" if holds(first, "left of", second) else "right"
    if match[2] == "above or below":
        return "above" if holds(first, "above", second) else "below"
    return "yes" if holds(first, match[2], second) else "no"


@pytest.mark.parametrize("split", ["train", "ood"])
def test_every_answer_is_true(split: str) -> None:
    kinds: Counter[str] = Counter()
    for index in range(600):
        scene = make_scene(7, split, index)
        for question in make_questions(scene):
            assert answer(scene, question.text) == question.answer, (question, scene)
            kinds[question.type] += 1
    assert set(kinds) == set(TYPES)
    assert min(kinds.values()) > 250


def test_answers_are_balanced_enough_that_words_alone_say_little() -> None:
    answers: dict[str, Counter[str]] = {name: Counter() for name in TYPES}
    for index in range(1500):
        for question in make_questions(make_scene(7, "train", index)):
            answers[question.type][question.answer] += 1
    ceiling = {"color": 0.2, "shape": 0.25, "count": 0.55, "existence": 0.57, "relation": 0.4, "comparison": 0.62}
    for name, limit in ceiling.items():
        assert answers[name].most_common(1)[0][1] / answers[name].total() < limit, name


def test_training_questions_never_name_a_held_out_pair() -> None:
    for index in range(1500):
        for question in make_questions(make_scene(7, "train", index)):
            for match in re.finditer(DESCRIPTION, question.text):
                assert (match["color"], match["shape"]) not in HELD_OUT, question
