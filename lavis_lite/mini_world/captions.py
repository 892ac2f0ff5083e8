"""Captions of a mini world scene: five true ones, each with every object and its position.

A caption has at most ``MAX_TOKENS`` words and commas, so it fits 32 tokens with [CLS] and [SEP]. Therefore captions of
crowded scenes are terse, and those of simple scenes have articles and longer phrases. A texture that is not named is
solid.
"""

from __future__ import annotations

from collections.abc import Callable

from lavis_lite.mini_world.dice import Dice
from lavis_lite.mini_world.scenes import CELLS, Scene, SceneObject, dice

CAPTIONS_PER_IMAGE = 5
MAX_TOKENS = 30

SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus"),
}
TEXTURE_WORDS = {"solid": ("", "", "solid", "plain"), "striped": ("striped",)}
POSITION_WORDS = {
    "top left": ("top left", "upper left"),
    "top": ("top", "upper middle"),
    "top right": ("top right", "upper right"),
    "left": ("left", "middle left"),
    "center": ("center", "middle"),
    "right": ("right", "middle right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom": ("bottom", "lower middle"),
    "bottom right": ("bottom right", "lower right"),
}
OPENINGS = ("", "", "there is", "a picture of", "an image with", "this shows", "we see")
RELATIONS = ("left of", "right of", "above", "below")


def count_tokens(text: str) -> int:
    """Words and commas of a caption."""
    return len(text.replace(",", " ,").split())


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether `first` is in `relation` to `second`, by the rows and columns of their cells."""
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[relation]


def describe(item: SceneObject) -> str:
    """The plain words of one object, e.g. ``small striped red star``; solid is left unsaid."""
    texture = "striped " if item.texture == "striped" else ""
    return f"{item.size} {texture}{item.color} {item.shape}"


def canonical_caption(scene: Scene) -> str:
    """The one plain caption of a scene: objects in reading order, no paraphrase."""
    items = sorted(scene.objects, key=lambda item: item.cell)
    return ", ".join(f"{describe(item)} {CELLS[item.cell]}" for item in items)


def _paraphrase(rng: Dice, item: SceneObject, terse: bool = False) -> str:
    """Words of one object without its position; `terse` does not name a solid texture, to keep to six words."""
    words = (
        rng.choose(SIZE_WORDS[item.size]),
        rng.choose(TEXTURE_WORDS[item.texture]) if not terse or item.texture != "solid" else "",
        item.color,
        rng.choose(SHAPE_WORDS[item.shape]),
    )
    return " ".join(word for word in words if word)


def _position(rng: Dice, item: SceneObject) -> str:
    return rng.choose(POSITION_WORDS[CELLS[item.cell]])


def _placed(rng: Dice, item: SceneObject, article: str = "a") -> str:
    """An object with its position in a long phrase, e.g. ``a big red star in the upper left corner``."""
    position = _position(rng, item)
    phrase = f"on the {position}" if position in ("left", "right") else f"at the {position}"
    if " " in position and "middle" not in position and rng.chance(0.3):
        phrase = f"in the {position} corner"
    elif position in ("center", "middle"):
        phrase = f"in the {position}"
    return f"{article} {_paraphrase(rng, item)} {phrase}"


def _join(rng: Dice, parts: list[str]) -> str:
    if len(parts) > 1 and rng.chance(0.6):
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    return ", ".join(parts)


def reword(rng: Dice, item: SceneObject) -> str:
    """One object and its position, in randomly chosen words."""
    return f"{_paraphrase(rng, item)} {_position(rng, item)}"


def _listing(rng: Dice, items: list[SceneObject]) -> str:
    opening = rng.choose(OPENINGS)
    return f"{opening} {_join(rng, [_placed(rng, item) for item in items])}".strip()


def _position_first(rng: Dice, items: list[SceneObject]) -> str:
    return _join(rng, [f"{_position(rng, item)} a {_paraphrase(rng, item)}" for item in items])


def _terse(rng: Dice, items: list[SceneObject]) -> str:
    """Four objects make 24 words and three commas at most, so this style always fits."""
    return _join(rng, [f"{_paraphrase(rng, item, terse=True)} {_position(rng, item)}" for item in items])


def _relation(rng: Dice, items: list[SceneObject]) -> str:
    """A relation between the first two objects with their positions, then the others; one object is listed."""
    if len(items) < 2:
        return _listing(rng, items)
    first, second, *others = items
    relation = rng.choose(tuple(name for name in RELATIONS if related(first, name, second)))
    if rng.chance(0.5):
        start = f"{_placed(rng, first, 'the')} is {relation} {_placed(rng, second, 'the')}"
    else:
        ends = [f"{_paraphrase(rng, item)} {_position(rng, item)}" for item in (first, second)]
        start = f"{ends[0]} is {relation} {ends[1]}"
    return ", ".join([start, *(f"{_paraphrase(rng, item)} {_position(rng, item)}" for item in others)])


_STYLES: tuple[Callable[[Dice, list[SceneObject]], str], ...] = (_listing, _listing, _position_first, _terse, _relation)
_TRIES = 3


def _one_caption(rng: Dice, scene: Scene) -> str:
    style = rng.choose(_STYLES)
    for _ in range(_TRIES):
        caption = style(rng, rng.shuffled(scene.objects))
        if count_tokens(caption) <= MAX_TOKENS:
            return caption
    return _terse(rng, rng.shuffled(scene.objects))


def make_captions(scene: Scene) -> list[str]:
    """Five captions; the first is the canonical one, the others vary order, wording and style."""
    rng = dice(scene.seed, scene.split, scene.index, "captions")
    return [canonical_caption(scene), *(_one_caption(rng, scene) for _ in range(CAPTIONS_PER_IMAGE - 1))]
