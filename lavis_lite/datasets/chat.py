"""Data sets of conversations: one sample per conversation, with all its pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from lavis_lite.conversation import Conversation
from lavis_lite.datasets.annotations.chats import to_conversation
from lavis_lite.datasets.annotations.rows import Row, RowTable
from lavis_lite.datasets.base import Sample, TableDataset
from lavis_lite.datasets.caption import Processor
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.media.video import VideoFolder
from lavis_lite.errors import DataError

Batch = dict[str, Any]


class ChatDataset(TableDataset):
    """Samples: conversation, a `Conversation`; image, a list of float32[3, H, W]; instance_id str; index int.

    The frames of a video are pictures side by side, in the video's place. Texts stay as they are written.

    Batches (`collater`): conversation, a list of B; image float32[N, 3, H, W], all pictures in row order.
    picture_counts is a list of B numbers with the sum N. Without pictures there is no `image`.

    Args:
        table: rows as `annotations.chats.read_conversation` makes them.
        folder: the images.
        videos: the videos.
        vis_processor: applied to every image and frame.
        frames: of each video, evenly spread.
    """

    sample_keys: tuple[str, ...] = ("conversation", "image", "instance_id", "index")

    def __init__(self, table: RowTable, folder: ImageFolder, videos: VideoFolder, vis_processor: Processor,
                 frames: int = 8) -> None:
        self.table, self.folder, self.videos, self.frames = table, folder, videos, frames
        self.vis_processor = vis_processor

    def sample(self, index: int, rng: random.Random | None = None, picture: Any = None) -> Sample:
        """One conversation; its pictures are drawn from `rng` in order.

        Args:
            picture: stands for all of them, or is a list with the views of each of the row's files.
        """
        row, media = self.table[index], self.media(index)
        if isinstance(picture, list):
            views = picture
        else:
            views = [self.views(*file, rng) if picture is None else [picture] * self._count(file[0]) for file in media]
        return {"conversation": to_conversation(row, list(map(len, views))),
                "image": [view for some in views for view in some], "instance_id": str(index),
                "index": index}

    def conversation(self, index: int) -> Conversation:
        """The turns of a row; a video counts as one picture."""
        return to_conversation(self.table[index])

    def facts(self, index: int) -> dict[str, Any]:
        """question_id and category of a row, if it has them."""
        return dict(self.table[index].get("facts", {}))

    def media(self, index: int) -> list[tuple[str, str]]:
        """(image | video, name) of a row's files, in order."""
        return [(kind, name) for kind, name in self.table[index]["media"]]

    def _count(self, kind: str) -> int:
        return 1 if kind == "image" else self.frames

    def views(self, kind: str, name: str, rng: random.Random | None = None) -> list[Any]:
        """The processed image of a file, or the frames of a video."""
        if kind == "image":
            return [self.folder.view(name, self.vis_processor, rng)]
        return [self.vis_processor(frame, rng) for frame in self._frames(name)]

    def preview(self, kind: str, name: str) -> Any:
        """What a person can be shown of a file: its bytes, or the middle frame of a video."""
        return self.folder.preview(name) if kind == "image" else self.videos.preview(name)

    def _frames(self, name: str) -> list[Any]:
        """Frames of a video as the image processor takes them."""
        from PIL import Image

        with self.videos.load(name) as video:
            spread = [int((number + 0.5) * len(video) / self.frames) for number in range(self.frames)]
            pixels = video.frames(spread)
        takes_pixels = getattr(self.vis_processor, "takes", "image") == "pixels"
        return [frame if takes_pixels else Image.fromarray(frame) for frame in pixels]

    def longest_first(self) -> list[int]:
        """All rows, those with most characters first."""
        lengths = [characters(row) for row in self.table.skim()]
        return sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """A batch of samples.

        Raises:
            DataError: their pictures are of unequal size.
        """
        views = [torch.as_tensor(view) for sample in samples for view in sample["image"]]
        shapes = sorted({tuple(view.shape) for view in views})
        if len(shapes) > 1:
            raise DataError(f"the pictures of one batch have different shapes: {', '.join(map(str, shapes))}. Give the "
                            "data sets that are mixed the same vis_processor image_size.")
        batch = {"conversation": [sample["conversation"] for sample in samples],
                 "picture_counts": [len(sample["image"]) for sample in samples],
                 **{key: [sample[key] for sample in samples] for key in ("instance_id", "index")}}
        return {**batch, "image": torch.stack(views)} if views else batch


def characters(row: Row) -> int:
    """Characters of all turns of a row."""
    return sum(len(part) for _, _, parts in row["turns"] for part in parts if isinstance(part, str))
