"""Text that the mini language models learn from: a scene told in words or vectors, and what is asked about it.

A document has one context and several turns, each a prompt and its answer. The context is plain text, or *blended*:
each object comes as a few groups of words, and a model reads a group as one vector, the sum of its word embeddings. So
a model learns what "small striped red star top left" means as one vector, in any order and among vectors that mean
nothing, which is what soft prompts are like. Everything is made from words; no picture is involved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from lavis_lite.mini_world import captions
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import CELLS, MAX_OBJECTS, Scene, SceneObject, make_scene
from lavis_lite.processors.instruction import TEMPLATES
from tools.turns import Turn, ask

QUESTION_PROMPTS = (
    "question: {} short answer:", "question: {} short answer:", "question: {} answer:", "question: {} answer:",
    "{}", "{} answer:", "answer the question: {}",
)  # fmt: skip
BARE, INSTRUCTED = 0.7, 0.05
"""Share of questions without a prompt, and in one of InstructBLIP's; the others are in one of QUESTION_PROMPTS."""
CAPTION_PROMPTS = ("", "", "a photo of", "a photo of", "caption:")
CAPTIONED = 0.7
"""Share of documents whose first turn is the plain caption."""
QUESTIONS = 11
"""Questions of a document at most."""
LENGTH = 112
"""Words, marks and vectors of a document at most: as many turns are kept as fit."""
CHAINED = 0.1
"""Share of documents that are one conversation."""
SPLIT = 0.3
"""Share of blended objects that are two vectors, where there is room."""
ORDERED = 0.6
"""Share of contexts that tell the objects in reading order; the others in any."""
NEXT_SCENE = 8
"""Scenes tried for a document with few objects."""
Group = tuple[str, ...]


@dataclass(frozen=True)
class Mix:
    """What documents are made of.

    Attributes:
        kinds: of questions (`turns.KINDS`), each as often as it is named.
        spare: how many vectors a blended context has besides its objects; one is drawn.
        objects: most objects of a scene.
        blended: share of documents with a blended context.
    """

    kinds: tuple[str, ...]
    spare: tuple[int, ...]
    objects: int = MAX_OBJECTS
    blended: float = 0.65


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        context: text that is read, or groups of words that are read as one vector each; an empty group means nothing.
        turns: what is asked and answered about it.
        objects: how many the scene has.
        chained: whether a decoder-only model sees earlier turns, as in a conversation; else each turn stands alone.
    """

    context: str | tuple[Group, ...]
    turns: tuple[Turn, ...]
    objects: int
    chained: bool = False


def scene_of(seed: int, index: int, most_objects: int = MAX_OBJECTS) -> Scene:
    """The scene of a document: the first of a few with at most so many objects, cut down where none has."""
    scene = make_scene(seed, "vit", index * NEXT_SCENE)
    for number in range(1, NEXT_SCENE):
        if len(scene.objects) <= most_objects:
            break
        scene = make_scene(seed, "vit", index * NEXT_SCENE + number)
    return Scene(seed, "vit", scene.index, scene.objects[:most_objects])


def make_document(seed: int, index: int, mix: Mix) -> Document:
    """The document number `index`, a pure function of its arguments."""
    rng = Dice(seed, index, 0)
    scene = scene_of(seed, index, mix.objects)
    blended = rng.chance(mix.blended)
    context = blend(rng, scene, len(scene.objects) + rng.choose(mix.spare)) if blended else tell(rng, scene)
    room = LENGTH - (_length(context) if isinstance(context, str) else len(context))
    turns = _fitting([*_caption(rng, scene), *_questions(rng, scene, mix.kinds)], room)
    return Document(context, turns, len(scene.objects), rng.chance(CHAINED))


def _length(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def _fitting(turns: Sequence[Turn], room: int) -> tuple[Turn, ...]:
    """The first turns, as many as there is room for, but at least one."""
    lengths = accumulate(_length(question) + _length(answer) + 1 for question, answer in turns)
    return tuple(turn for at, (turn, length) in enumerate(zip(turns, lengths, strict=True)) if not at or length <= room)


def tell(rng: Dice, scene: Scene) -> str:
    """All objects in reading order, in their plain words or in others, or one of the captions, in any order."""
    if not rng.chance(ORDERED):
        return f"{rng.choose(captions.make_captions(scene)[1:])}."
    items = sorted(scene.objects, key=lambda item: item.cell)
    words = _plain if rng.chance(0.5) else partial(captions.reword, rng)
    return ", ".join(words(item) for item in items) + "."


def _plain(item: SceneObject) -> str:
    return f"{captions.describe(item)} {CELLS[item.cell]}"


def blend(rng: Dice, scene: Scene, vectors: int) -> tuple[Group, ...]:
    """The scene's objects as `vectors` groups of words, in reading order or in any.

    Most objects are one group; some are two, each with the object's place, which holds them together; what is left
    repeats a group or is empty.
    """
    placed: list[tuple[float, Group]] = []
    spare = vectors - len(scene.objects)
    for item in scene.objects:
        words, place = captions.describe(item).split(), tuple(CELLS[item.cell].split())
        if spare > 0 and rng.chance(SPLIT):
            spare, cut = spare - 1, 1 + rng.below(len(words) - 1)
            placed += [(item.cell, (*words[:cut], *place)), (item.cell, (*words[cut:], *place))]
        else:
            placed.append((item.cell, (*words, *place)))
    full = list(placed)
    while len(placed) < vectors:
        placed.append(rng.choose(full) if rng.chance(0.5) else (rng.uniform(-1, len(CELLS)), ()))
    placed = rng.shuffled(placed)
    if rng.chance(ORDERED):
        placed.sort(key=lambda pair: pair[0])
    return tuple(group for _, group in placed)


def _caption(rng: Dice, scene: Scene) -> tuple[Turn, ...]:
    if not rng.chance(CAPTIONED):
        return ()
    prompts = TEMPLATES["caption"] if rng.chance(INSTRUCTED) else CAPTION_PROMPTS
    return ((rng.choose(prompts).lower(), captions.canonical_caption(scene)),)


def _questions(rng: Dice, scene: Scene, kinds: Sequence[str]) -> tuple[Turn, ...]:
    """Different questions, each in its own phrasing."""
    asked = dict(turn for turn in (ask(rng.choose(kinds), rng, scene) for _ in range(2 * QUESTIONS)) if turn)
    return tuple((phrase(rng, question), answer) for question, answer in list(asked.items())[:QUESTIONS])


def phrase(rng: Dice, question: str) -> str:
    """A question in one of the prompts that it may come in."""
    draw = rng.uniform(0, 1)
    prompts = ("{}",) if draw < BARE else TEMPLATES["vqa"] if draw < BARE + INSTRUCTED else QUESTION_PROMPTS
    return rng.choose(prompts).replace("{}", question)
