"""Questions about a mini world scene, each with its one true answer.

Six types: color, shape, count, existence, relation, comparison. Yes and no are drawn first and a fitting question is
built after, so that the words of a question say little about its answer. Outside the split ``ood`` no question names a
held-out colour-shape pair. Otherwise the training answer to it would always be "no", which would make the split unfair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from lavis_lite.mini_world.captions import RELATIONS, related
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import (
    CELLS,
    COLORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    dice,
)

VALUES = {"size": SIZES, "texture": TEXTURES, "color": COLORS, "shape": SHAPES}
"""Attributes in the order in which English puts them."""

Wanted = dict[str, str]

_PAIRS = tuple(combinations(VALUES, 2))


@dataclass(frozen=True)
class Question:
    """A question, its type (one of ``TYPES``) and its answer."""

    type: str
    text: str
    answer: str


def noun_phrase(wanted: Wanted, plural: bool = False) -> str:
    """Words for whatever has these attribute values, e.g. ``small red star`` or ``striped object``."""
    words = [wanted[name] for name in VALUES if name in wanted and name != "shape"]
    noun = wanted.get("shape", "object")
    ending = "" if not plural else "es" if noun == "cross" else "s"
    return " ".join([*words, noun + ending])


def with_article(noun: str) -> str:
    """``a star``, ``an object``."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def fits(item: SceneObject, wanted: Wanted) -> bool:
    """Whether an object has these attribute values."""
    return all(getattr(item, name) == value for name, value in wanted.items())


def values_of(item: SceneObject, names: tuple[str, ...]) -> Wanted:
    """These attributes of an object."""
    return {name: getattr(item, name) for name in names}


def count_of(scene: Scene, wanted: Wanted) -> int:
    """How many objects have these attribute values."""
    return sum(fits(item, wanted) for item in scene.objects)


def refer(rng: Dice, scene: Scene, item: SceneObject, hidden: str = "") -> str:
    """A phrase that fits this object alone and keeps `hidden` unsaid; its position decides if nothing else does."""
    names = [name for name in VALUES if name != hidden]
    for _ in range(4):
        subset = tuple(name for name in names if rng.chance(0.5))
        wanted = values_of(item, subset)
        if wanted and count_of(scene, wanted) == 1:
            return noun_phrase(wanted)
    noun = noun_phrase(values_of(item, ("color",))) if hidden == "shape" else noun_phrase(values_of(item, ("shape",)))
    return f"{noun} {position_phrase(item.cell)}"


def position_phrase(cell: int) -> str:
    """``in the center``, ``on the left``, ``at the top left``."""
    position = CELLS[cell]
    if position == "center":
        return "in the center"
    return f"on the {position}" if position in ("left", "right") else f"at the {position}"


def _color(rng: Dice, scene: Scene) -> Question:
    item = rng.choose(scene.objects)
    return Question("color", f"what color is the {refer(rng, scene, item, 'color')}?", item.color)


def _shape(rng: Dice, scene: Scene) -> Question:
    item = rng.choose(scene.objects)
    start = rng.choose(("what shape is", "what is the shape of"))
    return Question("shape", f"{start} the {refer(rng, scene, item, 'shape')}?", item.shape)


def _how_many(rng: Dice, scene: Scene) -> Question:
    if rng.chance(0.25):
        return Question("count", "how many objects are there?", str(len(scene.objects)))
    name = rng.choose(tuple(VALUES))
    present = rng.chance(0.8)
    value = getattr(rng.choose(scene.objects), name) if present else rng.choose(VALUES[name])
    wanted = {name: value}
    return Question("count", f"how many {noun_phrase(wanted, plural=True)} are there?", str(count_of(scene, wanted)))


def mentionable(scene: Scene, wanted: Wanted) -> bool:
    """Whether a question may name these values: no held-out pair outside the split ``ood``."""
    return scene.split == "ood" or (wanted.get("color"), wanted.get("shape")) not in HELD_OUT


def _existence(rng: Dice, scene: Scene) -> Question | None:
    wanted = values_of(rng.choose(scene.objects), rng.choose(_PAIRS))
    if rng.chance(0.5):
        return Question("existence", f"is there {with_article(noun_phrase(wanted))}?", "yes")
    for _ in range(8):
        name = rng.choose(tuple(wanted))
        changed = {**wanted, name: rng.choose(VALUES[name])}
        if count_of(scene, changed) == 0 and mentionable(scene, changed):
            return Question("existence", f"is there {with_article(noun_phrase(changed))}?", "no")
    return None


def _relation(rng: Dice, scene: Scene) -> Question | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.shuffled(scene.objects)[:2]
    true = [name for name in RELATIONS if related(first, name, second)]
    relation = rng.choose(tuple(true))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    a, b = refer(rng, scene, first), refer(rng, scene, second)
    if rng.chance(0.5):
        answer = rng.choose(("yes", "no"))
        return Question("relation", f"is the {a} {relation if answer == 'yes' else opposite} the {b}?", answer)
    if relation in ("above", "below"):
        return Question("relation", f"is the {a} above or below the {b}?", relation)
    return Question("relation", f"is the {a} left or right of the {b}?", relation.removesuffix(" of"))


def _comparison(rng: Dice, scene: Scene) -> Question | None:
    if len(scene.objects) < 2:
        return None
    return _more_than(rng, scene) if rng.chance(0.5) else _same(rng, scene)


def _more_than(rng: Dice, scene: Scene) -> Question | None:
    answer = rng.choose(("yes", "no"))
    for _ in range(8):
        name = rng.choose(("color", "shape"))
        present = {name: getattr(rng.choose(scene.objects), name)}
        other = {name: rng.choose(VALUES[name])}
        many, few = (present, other) if answer == "yes" else (other, present)
        if present != other and (count_of(scene, many) > count_of(scene, few)) == (answer == "yes"):
            text = f"are there more {noun_phrase(many, plural=True)} than {noun_phrase(few, plural=True)}?"
            return Question("comparison", text, answer)
    return None


def _same(rng: Dice, scene: Scene) -> Question | None:
    answer = rng.choose(("yes", "no"))
    for _ in range(8):
        name = rng.choose(tuple(VALUES))
        first, second = rng.shuffled(scene.objects)[:2]
        if (getattr(first, name) == getattr(second, name)) == (answer == "yes"):
            a, b = (refer(rng, scene, item, name) for item in (first, second))
            return Question("comparison", f"do the {a} and the {b} have the same {name}?", answer)
    return None


_MAKERS: dict[str, Callable[[Dice, Scene], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _how_many,
    "existence": _existence,
    "relation": _relation,
    "comparison": _comparison,
}
TYPES = tuple(_MAKERS)
"""The question types; a scene of one object has no relation and no comparison."""


def make_question(kind: str, rng: Dice, scene: Scene) -> Question | None:
    """A question of this type; None where the scene has none."""
    return _MAKERS[kind](rng, scene)


def make_questions(scene: Scene, count: int = len(TYPES)) -> list[Question]:
    """At most `count` questions of different types, types in random order."""
    rng = dice(scene.seed, scene.split, scene.index, "questions")
    made: list[Question] = []
    for name in rng.shuffled(TYPES):
        question = make_question(name, rng, scene) if len(made) < count else None
        if question is not None:
            made.append(question)
    return made
