"""Scenes of the mini world: objects and their positions, before any pixel or word exists.

A scene holds one to four objects in the cells of a 3 x 3 grid. An object has a shape, a colour, a size and a texture.
A few colour-shape pairs never occur outside the ``ood`` split, so that split measures unseen combinations.

Everything is a pure function of ``(seed, split, index)``: the same scene on any machine and with any number of
processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lavis_lite.mini_world.dice import Dice

IMAGE_SIZE = 64
"""Side of a picture, pixels."""
GRID = 3
"""Cells per side; cells are numbered 0-8 in reading order."""
CELL_SIZE = IMAGE_SIZE / GRID
"""Side of a cell, pixels."""
MAX_OBJECTS = 4

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped")
CELLS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

HELD_OUT = (
    ("red", "star"),
    ("orange", "cross"),
    ("green", "heart"),
    ("blue", "circle"),
    ("purple", "square"),
    ("white", "triangle"),
)
"""Colour-shape pairs that only the ``ood`` split contains: one for each shape, six different colours."""

SPLITS = {"train": 0, "val": 1, "test": 2, "ood": 3, "vit": 4}
"""Number of each split in the seed. ``vit`` is never written: the shipped vision encoder was trained on it."""
STREAMS = {"scene": 0, "pixels": 1, "captions": 2, "questions": 3}
"""Independent random streams of one scene, so that new wordings leave the pictures as they are."""

_RADIUS = {"small": 5.8, "large": 9.2}
_REPEAT_ATTRIBUTE = 0.35


@dataclass(frozen=True)
class SceneObject:
    """One object. ``x``, ``y`` (centre) and ``radius`` are pixels, angles are radians."""

    shape: str
    color: str
    size: str
    texture: str
    cell: int
    x: float
    y: float
    radius: float
    angle: float
    stripe_angle: float

    @property
    def row(self) -> int:
        """Row of the cell, 0 is the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """Column of the cell, 0 is the left."""
        return self.cell % GRID

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """The four visible attributes: ``(size, texture, color, shape)``."""
        return self.size, self.texture, self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """One scene: where it comes from and its objects, in the order they were drawn from the generator."""

    seed: int
    split: str
    index: int
    objects: tuple[SceneObject, ...]

    @property
    def image_id(self) -> int:
        """Number that is unique over all splits."""
        return SPLITS[self.split] * 1_000_000 + self.index

    def to_json(self) -> dict[str, Any]:
        """The ground truth as plain JSON values; positions and sizes in pixels, angles in radians."""
        objects = [{**vars(item), "position": CELLS[item.cell]} for item in self.objects]
        return {"image_id": self.image_id, "split": self.split, "index": self.index, "objects": objects}


def dice(seed: int, split: str, index: int, stream: str) -> Dice:
    """Random choices of one stream of one scene.

    Raises:
        KeyError: for an unknown split or stream.
    """
    return Dice(seed, SPLITS[split], index, STREAMS[stream])


def make_scene(seed: int, split: str, index: int) -> Scene:
    """The scene number ``index`` of a split.

    In ``ood`` exactly one object is a held-out pair; in other splits none is.
    """
    rng = dice(seed, split, index, "scene")
    cells = rng.shuffled(range(GRID * GRID))[: 1 + rng.below(MAX_OBJECTS)]
    objects: list[SceneObject] = []
    for cell in cells:
        pair = rng.choose(HELD_OUT) if split == "ood" and not objects else _training_pair(rng, objects)
        objects.append(_object_in(rng, *pair, cell))
    return Scene(seed, split, index, tuple(rng.shuffled(objects)))


def _training_pair(rng: Dice, earlier: list[SceneObject]) -> tuple[str, str]:
    """A pair that is not held out; often it shares colour or shape with an earlier object, so that counting matters."""
    while True:
        color, shape = rng.choose(COLORS), rng.choose(SHAPES)
        if earlier and rng.chance(_REPEAT_ATTRIBUTE):
            model = rng.choose(earlier)
            color, shape = (model.color, shape) if rng.chance(0.5) else (color, model.shape)
        if (color, shape) not in HELD_OUT:
            return color, shape


def _object_in(rng: Dice, color: str, shape: str, cell: int) -> SceneObject:
    """Give a pair its size, texture and exact position; the jitter stays well inside the cell."""
    size, texture = rng.choose(SIZES), rng.choose(TEXTURES)
    slack = 2.5 if size == "small" else 1.2
    return SceneObject(
        shape=shape,
        color=color,
        size=size,
        texture=texture,
        cell=cell,
        x=round((cell % GRID + 0.5) * CELL_SIZE + rng.uniform(-slack, slack), 3),
        y=round((cell // GRID + 0.5) * CELL_SIZE + rng.uniform(-slack, slack), 3),
        radius=round(_RADIUS[size] * rng.uniform(0.94, 1.06), 3),
        angle=round(rng.uniform(-0.22, 0.22), 4),
        stripe_angle=round(rng.uniform(0, math.pi), 4),
    )
