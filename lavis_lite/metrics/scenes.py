"""Scores of mini world captions against the pictured scenes, by attributes and by whole scenes; pure functions.

A caption is parsed into a list of objects, one per phrase: size, texture, colour, shape and position, in any wording.
The truth is a reference caption read the same way (every reference of an image describes the whole scene).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from lavis_lite.errors import DataError

ATTRIBUTES = ("size", "texture", "color", "shape", "place")
Object = dict[str, str]
"""attribute -> value; attributes that are not named are absent, except texture, which is then solid"""

_WORDS = {
    "size": {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"},
    "texture": {"solid": "solid", "plain": "solid", "striped": "striped"},
    "color": {name: name for name in ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")},
    "shape": {"circle": "circle", "disc": "circle", "square": "square", "box": "square", "triangle": "triangle",
              "star": "star", "heart": "heart", "cross": "cross", "plus": "cross"},
}
_ROWS = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_COLUMNS = ("left", "right")
_MIDDLE = ("center", "middle")
_BREAK = re.compile(r",|\band\b|\bis (?:left of|right of|above|below)\b")
_MOST = 6
"""objects of a caption that count; a scene has at most four"""


def read_objects(caption: str) -> list[Object]:
    """The objects a caption names. A phrase without any attribute names none; one with two shapes names two."""
    return [item for phrase in _BREAK.split(caption.lower()) for item in _phrase(re.findall(r"[a-z]+", phrase))]


def _phrase(words: Sequence[str]) -> list[Object]:
    shapes = [index for index, word in enumerate(words) if word in _WORDS["shape"]]
    if len(shapes) < 2:
        item = _object(words)
        return [item] if item else []
    cuts = [0, *(index + 1 for index in shapes[:-1]), len(words)]
    return [item for first, end in zip(cuts, cuts[1:], strict=False) if (item := _object(words[first:end]))]


def _object(words: Sequence[str]) -> Object:
    item: Object = {}
    for attribute, values in _WORDS.items():
        found = next((values[word] for word in words if word in values), None)
        if found is not None:
            item[attribute] = found
    row = next((_ROWS[word] for word in words if word in _ROWS), "")
    column = next((word for word in words if word in _COLUMNS), "")
    position = f"{row} {column}".strip() or ("center" if any(word in _MIDDLE for word in words) else "")
    if position:
        item["place"] = position
    return {"texture": "solid", **item} if item else {}


def _shared(one: Object, two: Object) -> int:
    return sum(one[key] == two[key] for key in one if key in two)


def matched(found: Sequence[Object], truth: Sequence[Object]) -> int:
    """Attributes that agree when objects are paired one to one in the best way."""
    fewer, more = sorted((list(found[:_MOST]), list(truth)), key=len)
    table = [[_shared(one, two) for two in more] for one in fewer]
    return max((sum(table[row][column] for row, column in enumerate(columns))
                for columns in permutations(range(len(more)), len(fewer))), default=0)


def is_exact(found: Sequence[Object], truth: Sequence[Object]) -> bool:
    """Whether the caption names exactly the scene's objects with all their attributes, in any order."""
    key = sorted(tuple(sorted(item.items())) for item in found)
    return key == sorted(tuple(sorted(item.items())) for item in truth)


def scene_scores(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> dict[str, float]:
    """Scores of captions against each image's first reference.

    Returns:
        attribute_f1 (2 x agreeing attributes / attributes of caption and scene, over all images), attribute_precision,
        attribute_recall. exact is the share of scenes described exactly, exact_<n> that of scenes with n objects.

    Raises:
        DataError: no caption; a caption of an unknown image; a reference that does not describe a scene.
    """
    if not captions:
        raise DataError("there is no caption to score.")
    agreeing = claimed = true = 0
    exact: dict[int, list[bool]] = {}
    for name, caption in captions.items():
        found, truth = read_objects(caption), _truth(name, references)
        agreeing += matched(found, truth)
        claimed, true = claimed + sum(map(len, found)), true + sum(map(len, truth))
        exact.setdefault(len(truth), []).append(is_exact(found, truth))
    every = [one for group in exact.values() for one in group]
    return {"attribute_f1": 2 * agreeing / (claimed + true),
            "attribute_precision": agreeing / claimed if claimed else 0.0,
            "attribute_recall": agreeing / true, "exact": sum(every) / len(every),
            **{f"exact_{count}": sum(group) / len(group) for count, group in sorted(exact.items())}}


def image_scores(caption: str, references: Sequence[str]) -> dict[str, float]:
    """image_attribute_f1 and exact (0 or 1) of one caption; the split's attribute_f1 counts all attributes together."""
    found, truth = read_objects(caption), _truth("", {"": references})
    total = sum(map(len, found)) + sum(map(len, truth))
    return {"image_attribute_f1": 2 * matched(found, truth) / total, "exact": float(is_exact(found, truth))}


def _truth(name: Any, references: Mapping[Any, Sequence[str]]) -> list[Object]:
    if not references.get(name):
        raise DataError(f"the caption of image {name!r} has no reference; score it with the captions of its own split.")
    truth = read_objects(references[name][0])
    if not truth or any(len(item) < len(ATTRIBUTES) for item in truth):
        raise DataError(f"the metric 'scene' reads captions of the mini world, but {references[name][0]!r} (image "
                        f"{name!r}) is not one. Remove the metric from run.caption_metrics.")
    return truth
