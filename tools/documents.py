"""Text that the mini language models learn from: what is said of generated scenes, and questions answered from it.

A document is read (a context and prompts) and written (targets). Its context is plain text, or *blended*: each object
comes as a few groups of words, and a model reads a group as the mean of its word embeddings. So a model learns what
"small striped red star top left" means as one vector, in any order and among vectors that mean nothing - which is what
soft prompts are like - and not only as six words in a row. Everything is made from words; no picture is involved.

A document is a pure function of its kind, seed, index, number of objects and number of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lavis_lite.mini_world import captions, questions
from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import CELLS, MAX_OBJECTS, Scene, SceneObject, make_scene
from tools.words import EVERYDAY

CAPTION_PROMPTS = ("a photo of", "a photo of", "caption:")
QUESTION_PROMPTS = (
    "question: {} short answer:", "question: {} short answer:", "question: {} answer:", "question: {} answer:",
    "{}", "{} answer:", "answer the question: {}",
)  # fmt: skip
FREE_STYLE = 0.3
"""Share of captions without a prompt that are told in any style; all others are canonical."""
KINDS = ("caption", "questions", "repeat", "story")
ORDERED_SHARE = 0.6
"""Share of contexts that tell the objects in reading order; the others in any."""
WHOLE_SHARE = 0.7
"""Share of captions that an encoder-decoder writes whole; of the others it reads the beginning."""
QUESTIONS = 3
"""Questions in a document at most."""
NEXT_SCENE = 8
"""Scenes tried for a document with few objects."""
_WORDS = tuple(dict.fromkeys(EVERYDAY.split()))
Group = tuple[str, ...]
Turn = tuple[str, str]


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        kind: caption (canonical, from the context), questions, repeat (words again), story (no context).
        objects: how many the scene has.
        blended: groups of words, each read as one vector; an empty group means nothing. () in a plain document.
        context: text that is read; "" in a blended document.
        turns: (prompt, target), one after the other.
    """

    kind: str
    objects: int
    blended: tuple[Group, ...]
    context: str
    turns: tuple[Turn, ...]


def scene_of(seed: int, split: str, index: int, most_objects: int = MAX_OBJECTS) -> Scene:
    """The scene of a document: the first of a few with at most so many objects, cut down where none has."""
    scene = make_scene(seed, split, index * NEXT_SCENE)
    for number in range(1, NEXT_SCENE):
        if len(scene.objects) <= most_objects:
            break
        scene = make_scene(seed, split, index * NEXT_SCENE + number)
    return Scene(seed, split, scene.index, scene.objects[:most_objects])


def make_document(kind: str, seed: int, index: int, most_objects: int = MAX_OBJECTS, vectors: int = 0,
                  split: str = "vit") -> Document:
    """The document number `index`.

    Args:
        kind: of `Document`.
        seed, index: choose everything.
        most_objects: in its scene.
        vectors: how many groups a blended context has; 0: a plain context.
        split: the split of the scenes.
    """
    rng = Dice(seed, index, vectors)
    scene = scene_of(seed, split, index, most_objects)
    if kind == "repeat":
        words = " ".join(rng.choose(_WORDS) for _ in range(2 + rng.below(8)))
        return Document(kind, 0, (), f"{words}.", (("again:", words),))
    told = captions.make_captions(scene)
    if kind == "story":
        return Document(kind, len(scene.objects), (), "", (("", rng.choose(told)),))
    groups = blend(rng, scene, vectors) if vectors else ()
    context = "" if vectors else _context(rng, scene, told)
    turns = (_caption_turn(rng, told, bool(vectors)),) if kind == "caption" else _question_turns(rng, scene)
    return Document(kind, len(scene.objects), groups, context, turns)


def blend(rng: Dice, scene: Scene, vectors: int) -> tuple[Group, ...]:
    """The scene's objects as `vectors` groups of words, in reading order or in any.

    Most objects are one group; some are two, each with the object's place, which holds them together; what is left
    repeats a group or is empty.
    """
    placed: list[tuple[float, Group]] = []
    spare = vectors - len(scene.objects)
    for item in scene.objects:
        words, place = captions.describe(item).split(), tuple(CELLS[item.cell].split())
        if spare > 0 and rng.chance(0.3):
            spare, cut = spare - 1, 1 + rng.below(len(words) - 1)
            placed += [(item.cell, (*words[:cut], *place)), (item.cell, (*words[cut:], *place))]
        else:
            placed.append((item.cell, (*words, *place)))
    full = list(placed)
    while len(placed) < vectors:
        placed.append(rng.choose(full) if rng.chance(0.5) else (rng.uniform(-1, len(CELLS)), ()))
    placed = rng.shuffled(placed)
    if rng.chance(ORDERED_SHARE):
        placed.sort(key=lambda pair: pair[0])
    return tuple(group for _, group in placed)


def split_turn(document: Document, place: float) -> Turn:
    """One turn for a model that reads and writes apart; every story and some captions are split by `split_caption`.

    Args:
        document: the document.
        place: a number in [0, 1) that chooses the turn or the place.
    """
    from lavis_lite.models.blip2.prompts import split_caption

    if document.kind == "questions":
        return document.turns[int(place * len(document.turns))]
    prompt, target = document.turns[0]
    whole = {"repeat": 1.0, "story": 0.0}.get(document.kind, WHOLE_SHARE)
    if place < whole:
        return prompt, target
    first, second = split_caption(target, (place - whole) / (1 - whole))
    return f"{prompt} {first}".strip(), second


def _context(rng: Dice, scene: Scene, told: Sequence[str]) -> str:
    """All objects in reading order, in their plain words or in others, or one of the captions, in any order."""
    if not rng.chance(ORDERED_SHARE):
        return f"{rng.choose(told[1:])}."
    items = sorted(scene.objects, key=lambda item: item.cell)
    words = _plain if rng.chance(0.5) else partial(captions.reword, rng)
    return ", ".join(words(item) for item in items) + "."


def _plain(item: SceneObject) -> str:
    return f"{captions.describe(item)} {CELLS[item.cell]}"


def _caption_turn(rng: Dice, told: Sequence[str], blended: bool) -> Turn:
    if blended and rng.chance(0.25):
        return "", rng.choose(told) if rng.chance(FREE_STYLE) else told[0]
    return rng.choose(CAPTION_PROMPTS), told[0]


def _question_turns(rng: Dice, scene: Scene) -> tuple[Turn, ...]:
    """Some questions about the scene, each in its own phrasing."""
    return tuple((rng.choose(QUESTION_PROMPTS).replace("{}", asked.text), asked.answer)
                 for asked in questions.make_questions(scene, QUESTIONS))
