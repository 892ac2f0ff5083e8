"""What the mini language models are asked about a scene while they learn to read it.

Besides the six types of the mini world there are easier kinds, each a step towards one of those: naming one attribute
or place, listing places (towards counting), naming an attribute of two objects (towards comparing them), and confirming
one attribute (towards existence).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lavis_lite.mini_world.captions import describe
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.questions import (
    TYPES,
    VALUES,
    count_of,
    make_question,
    mentionable,
    noun_phrase,
    position_phrase,
    refer,
    values_of,
    with_article,
)
from lavis_lite.mini_world.scenes import CELLS, Scene, SceneObject

Turn = tuple[str, str]
"""question, answer"""

_TRIES = 8


def ask(kind: str, rng: Dice, scene: Scene) -> Turn | None:
    """A question of this kind with its answer; None where the draw gives none.

    Args:
        kind: of `KINDS`.
        rng: draws everything.
        scene: what is asked about.
    """
    if kind not in TYPES:
        return _MAKERS[kind](rng, scene)
    made = make_question(kind, rng, scene)
    return (made.text, made.answer) if made is not None else None


def _size(rng: Dice, scene: Scene) -> Turn:
    item = rng.choose(scene.objects)
    name = rng.choose(("size", "texture"))
    return f"what {name} is the {refer(rng, scene, item, name)}?", getattr(item, name)


def _where(rng: Dice, scene: Scene) -> Turn | None:
    item = rng.choose(scene.objects)
    phrase = refer(rng, scene, item)
    has_place = phrase.endswith(position_phrase(item.cell))
    return None if has_place else (f"where is the {phrase}?", CELLS[item.cell])


def _what(rng: Dice, scene: Scene) -> Turn:
    cell = rng.choose(scene.objects).cell if rng.chance(0.75) else rng.below(len(CELLS))
    found = next((describe(item) for item in scene.objects if item.cell == cell), "nothing")
    return f"what is {position_phrase(cell)}?", found


def _places(rng: Dice, scene: Scene) -> Turn:
    """Where all objects of one kind are, in reading order."""
    name = rng.choose(tuple(VALUES))
    value = getattr(rng.choose(scene.objects), name) if rng.chance(0.9) else rng.choose(VALUES[name])
    cells = sorted(item.cell for item in scene.objects if getattr(item, name) == value)
    places = ", ".join(CELLS[cell] for cell in cells) or "nowhere"
    return f"where are the {noun_phrase({name: value}, plural=True)}?", places


def _pair(rng: Dice, scene: Scene) -> Turn | None:
    """The same attribute of two objects."""
    if len(scene.objects) < 2:
        return None
    name = rng.choose(tuple(VALUES))
    pair = rng.shuffled(scene.objects)[:2]
    a, b = (refer(rng, scene, item, name) for item in pair)
    return f"what {name} are the {a} and the {b}?", " and ".join(getattr(item, name) for item in pair)


def _attribute(rng: Dice, scene: Scene) -> Turn | None:
    """Whether an object has a value, or a place; many wrong ones are another object's."""
    item, other = rng.choose(scene.objects), rng.choose(scene.objects)
    name, yes = rng.choose((*VALUES, "cell")), rng.chance(0.5)
    choices: Sequence[Any] = VALUES.get(name, range(len(CELLS)))
    value: Any = getattr(item if yes else other, name) if yes or rng.chance(0.6) else rng.choose(choices)
    if (value == getattr(item, name)) != yes or not _may_be(scene, item, name, value):
        return None
    phrase = refer(rng, scene, item, name)
    if name == "cell" and phrase.endswith(position_phrase(item.cell)):
        return None
    told = position_phrase(value) if name == "cell" else with_article(value) if name == "shape" else value
    return f"is the {phrase} {told}?", "yes" if yes else "no"


def _may_be(scene: Scene, item: SceneObject, name: str, value: str) -> bool:
    """Whether a question may say this of an object: no held-out colour-shape pair."""
    return mentionable(scene, {**values_of(item, ("color", "shape")), name: value})


def _present(rng: Dice, scene: Scene) -> Turn | None:
    """Whether there is an object with one value."""
    name, yes = rng.choose(("color", "color", "shape", "shape", "size", "texture")), rng.chance(0.5)
    for _ in range(_TRIES):
        wanted = {name: getattr(rng.choose(scene.objects), name) if yes else rng.choose(VALUES[name])}
        if (count_of(scene, wanted) > 0) == yes:
            return f"is there {with_article(noun_phrase(wanted))}?", "yes" if yes else "no"
    return None


def _alike(rng: Dice, scene: Scene) -> Turn | None:
    """The easy form of comparing two objects: their names may say the attribute itself."""
    if len(scene.objects) < 2:
        return None
    name, yes = rng.choose(tuple(VALUES)), rng.chance(0.5)
    for _ in range(_TRIES):
        first, second = rng.shuffled(scene.objects)[:2]
        if (getattr(first, name) == getattr(second, name)) == yes:
            a, b = refer(rng, scene, first), refer(rng, scene, second)
            return f"do the {a} and the {b} have the same {name}?", "yes" if yes else "no"
    return None


_MAKERS: dict[str, Callable[[Dice, Scene], Turn | None]] = {
    "size": _size, "where": _where, "what": _what, "places": _places, "pair": _pair, "attribute": _attribute,
    "present": _present, "alike": _alike}
KINDS = (*TYPES, *_MAKERS)
