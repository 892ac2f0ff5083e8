"""Caption data sets of images or videos: one sample per caption for training, one per image for evaluation."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from lavis_lite.datasets.annotations.rows import Row, RowErrors, RowTable
from lavis_lite.datasets.base import Sample, TableDataset, image_number, processed
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.protocols import Located

Processor = Callable[..., Any]
"""(item, rng) -> item"""


class CaptionDataset(TableDataset):
    """Training: one sample per row; of a row with several captions one is drawn at random each time.

    Samples: image float32[3, H, W] (or video float32[3, T, H, W]), text_input str, image_id int (equal for captions of
    the same image), instance_id str; with an instruction also text_output str.

    Args:
        table: rows with image and caption (one text, or a list to draw from).
        folder: the images, or the videos.
        vis_processor, text_processor: applied to the image and to the caption.
        space: the image folder as the configuration names it; keeps image ids of several data sets apart.
        instruction: makes the prompt that text_input becomes; the caption is then text_output.
    """

    sample_keys: tuple[str, ...] = ("image", "text_input", "image_id", "instance_id")

    def __init__(self, table: RowTable, folder: ImageFolder, vis_processor: Processor, text_processor: Processor,
                 space: str = "", instruction: Processor | None = None) -> None:
        self.table, self.folder, self.space = table, folder, space
        self.vis_processor, self.text_processor, self.instruction = vis_processor, text_processor, instruction
        self.sample_keys = (folder.key, *self.sample_keys[1:])
        if instruction is not None:
            self.sample_keys = (*self.sample_keys, "text_output")

    def sample(self, index: int, rng: random.Random | None = None) -> Sample:
        """One caption with its image."""
        row = self.table[index]
        view = self.folder.view(row["image"], self.vis_processor, rng)
        caption = row["caption"] if isinstance(row["caption"], str) else (rng or random).choice(row["caption"])
        caption = processed(self.text_processor, caption, rng, "caption")
        texts = {"text_input": caption} if self.instruction is None else {
            "text_input": self.instruction("", rng), "text_output": caption}
        return {self.folder.key: view, **texts, "image_id": image_number(self.space, row["image"]),
                "instance_id": str(index)}


class CaptionEvalDataset(TableDataset):
    """Evaluation: one sample per image, with all its captions known to the data set.

    Samples: image float32[3, H, W] (or video float32[3, T, H, W]), image_id int (out of the annotations' ids, else out
    of the file names, else the index), index int (of the image), instance_id str, text_input str (the first caption)
    if every image has a caption, and prompt str if there is an instruction.

    For retrieval: `image` list of file names, `text` list of all captions, `txt2img` caption index -> image index and
    `img2txt` image index -> caption indices. `bare` lists the indices of images without a caption; `has_text`: there
    is none.

    Args:
        table: rows with image and, if there are any, caption (list); rows of the same image are joined.
        folder, vis_processor, text_processor, instruction: as in training.
    """

    sample_keys: tuple[str, ...] = ("image", "text_input", "image_id", "index", "instance_id")
    needs_words = False

    def __init__(self, table: RowTable, folder: ImageFolder, vis_processor: Processor, text_processor: Processor,
                 instruction: Processor | None = None) -> None:
        self.table, self._locations = _by_image(table)
        self.folder, self.vis_processor, self.text_processor = folder, vis_processor, text_processor
        self.instruction = instruction
        self.sample_keys = (folder.key, *self.sample_keys[1:])
        rows = [self.table[index] for index in range(len(self.table))]
        self.image = [row["image"] for row in rows]
        given: list[int | str | None] = [row.get("image_id") for row in rows]
        stems = [image.rsplit("/", 1)[-1].rsplit(".", 1)[0] for image in self.image]
        numbers = numbers_of(given)
        self.image_ids = numbers or numbers_of(stems) or list(range(len(rows)))
        self._given = None if None in given else given
        self._numbered = bool(numbers)
        self.bare = [index for index, row in enumerate(rows) if not row["caption"]]
        self.has_text = not self.bare
        if not self.has_text:
            self.sample_keys = tuple(key for key in self.sample_keys if key != "text_input")
        if instruction is not None:
            self.sample_keys = (*self.sample_keys, "prompt")

    def location(self, index: int) -> str:
        """`file:row` of the image's first annotation."""
        return self._locations[index]

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """One image, or `picture` instead of it."""
        row = self.table[index]
        shown = self.picture(index, rng) if picture is None else picture
        sample = {self.folder.key: shown, "image_id": self.image_ids[index], "index": index,
                  "instance_id": str(index)}
        if self.has_text:
            sample["text_input"] = self.text_processor(row["caption"][0], rng)
        if self.instruction is not None:
            sample["prompt"] = self.instruction("", rng)
        return sample

    def picture(self, index: int, rng: random.Random | None = None) -> Any:
        """The processed image, or the clip."""
        return self.folder.view(self.image[index], self.vis_processor, rng)

    def image_name(self, index: int) -> str:
        """File name of an image."""
        return self.image[index]

    def references(self, index: int) -> list[str]:
        """Captions of an image as the annotations have them, for official scores."""
        return list(self.table[index]["caption"])

    def ids(self, index: int) -> tuple[int | str, ...]:
        """What other files call an image: its image_id, and the annotations' id; that one alone if it has no number."""
        own = None if self._given is None else self._given[index]
        if own is None:
            return (self.image_ids[index],)
        return (self.image_ids[index], own) if self._numbered else (own,)

    def domain(self, index: int) -> str:
        """NoCaps' in-domain, near-domain or out-domain if the annotations have it, else ""."""
        return str(self.table[index].get("domain", ""))

    @cached_property
    def captions(self) -> list[list[str]]:
        """Processed captions of each image, in file order."""
        rows = (self.table[index] for index in range(len(self)))
        return [[self.text_processor(caption) for caption in row["caption"]] for row in rows]

    @cached_property
    def text(self) -> list[str]:
        """All processed captions, image by image."""
        return [caption for captions in self.captions for caption in captions]

    @cached_property
    def img2txt(self) -> dict[int, list[int]]:
        """Image index -> indices of its captions in `text`."""
        ends = [0, *accumulate(map(len, self.captions))]
        return {image: list(range(*bounds)) for image, bounds in enumerate(pairwise(ends))}

    @cached_property
    def txt2img(self) -> dict[int, int]:
        """Index in `text` -> image index."""
        return {text: image for image, texts in self.img2txt.items() for text in texts}


class DuplicateIds:
    """Rows that give different files the same image_id."""

    def __init__(self) -> None:
        self.errors = RowErrors()
        self._first: dict[int | str, tuple[str, int]] = {}

    def add(self, row: Row, index: int, table: Located) -> None:
        """Look at one more row of a table, or of a data set."""
        if row.get("image_id") is None:
            return
        name, first = self._first.setdefault(row["image_id"], (row["image"], index))
        if name != row["image"]:
            self.errors.add(table.location(index), f"field 'image_id' is {row['image_id']!r} for {row['image']}, but "
                            f"at {table.location(first)} for {name}")


def _by_image(table: RowTable) -> tuple[RowTable, list[str]]:
    """Rows of the same image joined, in order of first appearance, and the location of each one's first row.

    Raises:
        DataError: an image_id belongs to several images; result files could not tell them apart.
    """
    joined: dict[str, dict[str, Any]] = {}
    locations, twice = [], DuplicateIds()
    for index in range(len(table)):
        row = table[index]
        twice.add(row, index, table)
        if row["image"] not in joined:
            joined[row["image"]] = {**row, "caption": []}
            locations.append(table.location(index))
        joined[row["image"]]["caption"] += row.get("caption", [])
    twice.errors.stop_if_any()
    return RowTable(((0, 0, row) for row in joined.values()), []), locations


def numbers_of(names: Sequence[int | str | None]) -> list[int]:
    """One different integer per name: the name itself, or the digits at its end; [] if a name has none or shares it.

    "coco_391895" and COCO_val2014_000000391895 both give 391895.
    """
    numbers = [number for name in names if (number := _last_number(name)) is not None]
    return numbers if len(set(numbers)) == len(names) else []


def _last_number(name: int | str | None) -> int | None:
    if name is None or isinstance(name, int):
        return name
    digits = re.search(r"(?<!\d)\d{1,18}$", name)
    return int(digits.group()) if digits else None


class RetrievalDataset(CaptionDataset):
    """Training pairs; image_id tells which texts belong to the same image, so that none serves as its negative."""


class RetrievalEvalDataset(CaptionEvalDataset):
    """Evaluation gallery: samples carry only image (or video), index int, image_id int and instance_id str.

    Texts are not part of the samples: the task encodes `text` (all captions) itself.
    """

    sample_keys: tuple[str, ...] = ("image", "image_id", "index", "instance_id")

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """One image, or `picture` instead of it."""
        sample = super().sample(index, rng, picture)
        sample.pop("text_input", None)
        return sample
