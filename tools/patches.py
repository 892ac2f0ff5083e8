"""Pictures with a label for every patch: what the mini ViT is trained and probed on."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from lavis_lite.mini_world.render import encode_jpeg, patch_owners, render
from lavis_lite.mini_world.scenes import CELLS, COLORS, SHAPES, SIZES, TEXTURES, Scene, make_scene
from lavis_lite.models.vision.config import MINI_PATCH_SIZE as PATCH_SIZE

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of CLIP, which the image processors use by default."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "size": SIZES,
    "texture": TEXTURES,
    "cell": CELLS,
}
"""Labels of a patch and their values; in a label tensor, one more than the last value's index means background."""

IGNORE = -100
"""Label of a patch that shows too little of an object for either answer."""


def load_pixels(scene: Scene) -> torch.Tensor:
    """The picture as a model gets it from disk, JPEG losses included: float[3, 64, 64], normalised."""
    pixels = np.asarray(Image.open(io.BytesIO(encode_jpeg(render(scene)))), np.float32) / 255
    pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def patch_labels(scene: Scene) -> torch.Tensor:
    """Labels of all patches: int64[A, P] with A in the order of ``ATTRIBUTES``."""
    owners = patch_owners(scene, PATCH_SIZE)
    rows = []
    for name, values in ATTRIBUTES.items():
        of_object = [item.cell if name == "cell" else values.index(getattr(item, name)) for item in scene.objects]
        table = np.array([*of_object, IGNORE, len(values)])  # owner -2 and -1 pick the last two entries
        rows.append(table[owners])
    return torch.from_numpy(np.stack(rows))


def scene_batch(seed: int, split: str, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures float[B, 3, 64, 64] and labels int64[B, A, P] of some scenes."""
    scenes = [make_scene(seed, split, index) for index in indices]
    return torch.stack([load_pixels(s) for s in scenes]), torch.stack([patch_labels(s) for s in scenes])


class PatchBatches(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of fresh scenes of the split ``vit``, each scene once."""

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self.seed, self.images, self.batch_size = seed, images, batch_size

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in range(len(self)):
            start = batch * self.batch_size
            yield scene_batch(self.seed, "vit", range(start, start + self.batch_size))
