"""What data sets give besides samples, by name. Tasks, checks and tools ask for these instead of for classes.

A data set has a protocol if it has the names; any map-style data set may. `lavis_lite.registry.lacking` says what one
lacks. `index` counts the samples of the data set from 0.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lavis_lite.conversation import Conversation
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.datasets.media.images import ImageFolder


@runtime_checkable
class MapDataset(Protocol):
    """Samples by index: what every data set is."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class SeededSamples(Protocol):
    """Samples with randomness from outside."""

    def sample(self, index: int, rng: random.Random | None = None, /) -> dict[str, Any]:
        """The sample at `index`; all draws come from `rng`."""


@runtime_checkable
class Located(Protocol):
    """Knows where its annotations stand."""

    def location(self, index: int) -> str:
        """`file:row` of a sample, for messages."""


@runtime_checkable
class Ordered(Protocol):
    """Has an order in which batches for evaluation are best made."""

    def evaluation_order(self) -> Sequence[int]:
        """All indices, the same in every process."""


@runtime_checkable
class Hashed(Protocol):
    """Knows whether its content is that of another time."""

    def content_hash(self) -> str | None:
        """Hash of what the samples are made from; None: not known."""


@runtime_checkable
class Captions(MapDataset, Protocol):
    """One sample per image with all its captions: what `captioning` evaluates. Samples have image_id and index."""

    has_text: bool
    """whether every image has a caption, so that predictions can be scored"""

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """Processed captions of each image."""

    def references(self, index: int) -> list[str]:
        """Captions of an image as they are written in the annotations."""


@runtime_checkable
class Domains(Protocol):
    """Sorts its images into groups that are scored separately (NoCaps' domains)."""

    def domain(self, index: int) -> str:
        """Group of an image; "": none."""


@runtime_checkable
class Identities(Protocol):
    """Knows the ids by which files outside of the data set name its images."""

    def ids(self, index: int) -> Sequence[int | str]:
        """Ids of an image, the one of result files first."""


@runtime_checkable
class CaptionedImages(MapDataset, Protocol):
    """Images and texts to search, as LAVIS' retrieval sets have them. Samples have image and index."""

    @property
    def text(self) -> Sequence[str]:
        """All captions."""

    @property
    def img2txt(self) -> Mapping[int, Sequence[int]] | Sequence[Sequence[int]]:
        """Image index -> indices of its captions in `text`."""


@runtime_checkable
class Questions(MapDataset, Protocol):
    """One sample per question: what `vqa` and its kin evaluate. Samples have question_id, index and text_input."""

    has_answers: bool
    """whether predictions can be scored"""

    def question(self, index: int) -> dict[str, Any]:
        """Row of a question: question and answers (one per annotator), where known question_id and types."""


@runtime_checkable
class Conversations(MapDataset, Protocol):
    """One sample per conversation: what `chat` evaluates. Samples have conversation, picture_counts, image, index."""

    def conversation(self, index: int) -> Conversation:
        """The turns of a sample."""

    def facts(self, index: int) -> dict[str, Any]:
        """What the row says besides: question_id and category, if it has them."""


@runtime_checkable
class AnswerList(Protocol):
    """Has a list of answers to choose among."""

    @property
    def answer_list(self) -> list[str]:
        """Answers, the likeliest first."""


@runtime_checkable
class Choices(Questions, AnswerList, Protocol):
    """Questions with candidates: what `ranking` evaluates."""

    multiple_choice: bool
    """whether every question has its own candidates; else `answer_list` serves all"""

    extras: tuple[str, ...]
    """further keys of the samples: choices, context, caption, history, ocr_tokens"""


@runtime_checkable
class MajorityAnswers(Protocol):
    """Knows the answers of the training split."""

    def majority_pairs(self) -> Iterable[tuple[str, str]]:
        """(question, its commonest answer) of each training row."""


@runtime_checkable
class NamedImages(Protocol):
    """Knows the file of each sample's image."""

    def image_name(self, index: int) -> str:
        """File name of the image."""


@runtime_checkable
class SwappableImages(NamedImages, MapDataset, Protocol):
    """Gives its images apart from its samples, so that another may stand in an image's place."""

    def picture(self, index: int, rng: random.Random | None = None) -> Any:
        """The processed image float[3,H,W], or the clip float[3,T,H,W]."""

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> dict[str, Any]:
        """The sample at `index`, with `picture` in it where one is given."""


@runtime_checkable
class ManyImages(MapDataset, Protocol):
    """Rows with any number of images and videos, each of which another may replace."""

    frames: int
    """of a video"""

    def media(self, index: int) -> list[tuple[str, str]]:
        """(image | video, name) of a row's files, in order."""

    def views(self, kind: str, name: str, rng: random.Random | None = None) -> list[Any]:
        """The processed image of a file, or the frames."""

    def preview(self, kind: str, name: str) -> Any:
        """What a person can be shown of a file: its bytes, or an image."""

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> dict[str, Any]:
        """The sample at `index`, with `picture` in it, a list of views for each of the row's files, if it is given."""


@runtime_checkable
class LongestFirst(Located, MapDataset, Protocol):
    """Knows which of its texts are longest."""

    vis_processor: Any

    def longest_first(self) -> list[int]:
        """All indices, those with most characters first."""

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> dict[str, Any]:
        """The sample at `index`, with `picture` in it."""


@runtime_checkable
class ImageTable(Located, MapDataset, Protocol):
    """Rows of annotations and the folder of their images: what `data check`, shards and kept features read."""

    table: RowTable
    folder: ImageFolder
