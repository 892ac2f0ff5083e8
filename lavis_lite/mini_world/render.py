"""Pixels of a mini world scene: anti-aliased shapes on a textured background, numpy only.

Every shape is star-convex: a table gives the distance from the centre to the outline for each direction. One lookup per
pixel then gives the signed distance to the outline, and from it coverage, rim and stripes, the same way for all shapes.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lavis_lite.mini_world.scenes import IMAGE_SIZE, SHAPES, SPLITS, STREAMS, Scene, SceneObject

JPEG_QUALITY = 85

Array = NDArray[np.float32]

RGB = {
    "red": (222, 36, 36),
    "orange": (250, 140, 20),
    "yellow": (250, 226, 50),
    "green": (40, 165, 60),
    "blue": (35, 85, 225),
    "purple": (145, 45, 190),
    "white": (250, 250, 250),
    "black": (18, 18, 22),
}
"""Colour of each colour word, 0-255, before the small jitter of each object."""

_DIRECTIONS = 720
_STRIPE_PERIOD = {"small": 3.6, "large": 4.8}
_GRID_Y, _GRID_X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


def _polygon_outline(corners: list[tuple[float, float]]) -> Array:
    """Distance from the centre to a polygon's outline: float[_DIRECTIONS], the centre must see every corner."""
    theta = np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False)
    ray = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    reach = np.full(_DIRECTIONS, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge = np.array([x1 - x0, y1 - y0])
        across = ray[:, 0] * edge[1] - ray[:, 1] * edge[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (x0 * edge[1] - y0 * edge[0]) / across
            along = (x0 * ray[:, 1] - y0 * ray[:, 0]) / across
        hit = (distance > 0) & (along >= -1e-9) & (along <= 1 + 1e-9)
        reach = np.where(hit, np.minimum(reach, distance), reach)
    return reach.astype(np.float32)


def _regular(count: int, radius: float, turn: float) -> list[tuple[float, float]]:
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [(radius * float(np.cos(a)), radius * float(np.sin(a))) for a in angles]


def _star() -> list[tuple[float, float]]:
    outer, inner = _regular(5, 1.18, -np.pi / 2), _regular(5, 0.5, -np.pi / 2 + np.pi / 5)
    return [corner for pair in zip(outer, inner, strict=True) for corner in pair]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 121)[:-1]
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [(float(a) / 15.5, float(b - 0.5) / 15.5) for a, b in zip(x, y, strict=True)]


def _cross() -> list[tuple[float, float]]:
    a, b = 0.34, 1.06
    return [(a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a), (b, -a), (b, a)]


@functools.cache
def _outlines() -> tuple[Array, Array]:
    """Outline distance and the factor that turns radial into true distance: two float[shapes, _DIRECTIONS]."""
    tables = {
        "circle": np.ones(_DIRECTIONS, np.float32),
        "square": _polygon_outline([(0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9), (0.9, -0.9)]),
        "triangle": _polygon_outline([(0.0, -1.15), (1.08, 0.78), (-1.08, 0.78)]),
        "star": _polygon_outline(_star()),
        "heart": _polygon_outline(_heart()),
        "cross": _polygon_outline(_cross()),
    }
    reach = np.stack([tables[shape] for shape in SHAPES])
    slope = (np.roll(reach, -1, axis=1) - np.roll(reach, 1, axis=1)) / (4 * np.pi / _DIRECTIONS)
    return reach, (1 / np.sqrt(1 + (slope / reach) ** 2)).astype(np.float32)


def _window(item: SceneObject) -> tuple[slice, slice]:
    """Rows and columns that hold the whole object: no outline reaches beyond 1.3 radii."""
    x, y, reach = round(item.x), round(item.y), math.ceil(1.3 * item.radius) + 2
    rows = slice(max(y - reach, 0), min(y + reach, IMAGE_SIZE))
    return rows, slice(max(x - reach, 0), min(x + reach, IMAGE_SIZE))


def inside_distance(item: SceneObject, rows: slice, columns: slice) -> Array:
    """Signed distance to the object's outline in pixels, positive inside: float[rows, columns] of the given window."""
    dx = _GRID_X[rows, columns] + 0.5 - item.x
    dy = _GRID_Y[rows, columns] + 0.5 - item.y
    direction = np.arctan2(dy, dx) - item.angle
    slot = np.rint(direction * (_DIRECTIONS / (2 * np.pi))).astype(np.int32) % _DIRECTIONS
    shape = SHAPES.index(item.shape)
    outline, oblique = _outlines()
    return (item.radius * outline[shape, slot] - np.hypot(dx, dy)) * oblique[shape, slot]


def _stripes(item: SceneObject, distance: Array, rows: slice, columns: slice, phase: float) -> Array:
    """Share of the second tone, 0-1, in soft-edged bars; a rim keeps the first tone so that the outline stays clear."""
    across = np.float32(np.cos(item.stripe_angle)) * _GRID_X[rows, columns]
    across = across + np.float32(np.sin(item.stripe_angle)) * _GRID_Y[rows, columns]
    period = _STRIPE_PERIOD[item.size]
    bars = np.clip(1.2 * np.sin(across * np.float32(2 * np.pi / period) + phase) + 0.4, 0, 1)
    return bars * np.clip(distance - 0.6, 0, 1)


def _second_tone(color: Array) -> Array:
    """Colour of the bars: the same hue, darker for light colours and lighter for dark ones."""
    if color @ np.array([0.3, 0.59, 0.11], np.float32) > 95:
        return color * np.float32(0.5)
    return color * np.float32(0.55) + np.float32(255 * 0.45)


def _paint(canvas: Array, item: SceneObject, rng: np.random.Generator) -> None:
    rows, columns = _window(item)
    jitter = rng.uniform(-1, 1, 5).astype(np.float32)
    distance = inside_distance(item, rows, columns)
    color = np.clip(np.array(RGB[item.color], np.float32) + 10 * jitter[:3], 0, 255)
    fill = np.broadcast_to(color, (*distance.shape, 3))
    if item.texture == "striped":
        bars = _stripes(item, distance, rows, columns, float(np.pi * jitter[3]))[..., None]
        fill = fill + bars * (_second_tone(color) - color)
    coverage = np.clip(distance + 0.5, 0, 1)[..., None]
    shade = np.clip(1 - 0.025 * distance[..., None] * jitter[4], 0.88, 1.12)
    patch = canvas[rows, columns]
    patch += coverage * (np.clip(fill * shade, 0, 255) - patch)


def _pattern(rng: np.random.Generator) -> Array:
    """One of five quiet textures, values about -1 to 1: float[IMAGE_SIZE, IMAGE_SIZE]."""
    kind, angle, phase = int(rng.integers(5)), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * _GRID_X + np.sin(angle) * _GRID_Y).astype(np.float32)
    across = (-np.sin(angle) * _GRID_X + np.cos(angle) * _GRID_Y).astype(np.float32)
    if kind == 0:
        return along / IMAGE_SIZE
    if kind == 1:
        coarse = rng.uniform(-1, 1, (9, 9)).astype(np.float32)
        blurred = Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        return np.asarray(blurred, np.float32)
    if kind == 2:
        return np.sin(along * np.float32(0.5) + phase) * np.sin(across * np.float32(0.5))
    if kind == 3:
        return np.sin(across * np.float32(0.18) + 1.5 * np.sin(along * np.float32(0.12) + phase))
    return np.sign(np.sin(along * np.float32(0.3) + phase) * np.sin(across * np.float32(0.3))) * np.float32(0.6)


def _background(rng: np.random.Generator) -> Array:
    """Muted two-tone texture with fine grain: float[IMAGE_SIZE, IMAGE_SIZE, 3], 0-255."""
    base = rng.uniform(95, 165) + rng.uniform(-22, 22, 3)
    tint = rng.uniform(6, 20) + rng.uniform(-6, 6, 3)
    canvas = _pattern(rng)[..., None] * tint.astype(np.float32) + base.astype(np.float32)
    grain = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)
    return canvas + np.float32(rng.uniform(1, 6)) * grain


def render(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene: uint8[64, 64, 3], RGB."""
    key = [scene.seed, SPLITS[scene.split], scene.index, STREAMS["pixels"]]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    canvas = _background(rng)
    for item in scene.objects:
        _paint(canvas, item, rng)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of a picture, full colour resolution (4:4:4): small objects would lose their colour otherwise."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def patch_owners(scene: Scene, patch_size: int) -> NDArray[np.int64]:
    """Which object each patch shows: int64[P] in reading order.

    The value is the object's place in ``scene.objects``, -1 for background, -2 where an object covers so little of the
    patch (2-15 %) that neither answer is right.
    """
    per_side = IMAGE_SIZE // patch_size
    whole = slice(0, IMAGE_SIZE)
    cover = np.zeros((len(scene.objects), per_side * per_side), np.float32)
    for number, item in enumerate(scene.objects):
        inside = np.clip(inside_distance(item, whole, whole) + 0.5, 0, 1)
        blocks = inside.reshape(per_side, patch_size, per_side, patch_size)
        cover[number] = blocks.mean(axis=(1, 3)).reshape(-1)
    owner, most = cover.argmax(axis=0), cover.max(axis=0)
    return np.where(most >= 0.15, owner, np.where(most > 0.02, -2, -1)).astype(np.int64)
