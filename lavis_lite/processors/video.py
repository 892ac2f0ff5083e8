"""Video processors under LAVIS' names: an open video -> normalised float32[3, T, S, S].

Frames are cropped and resized one by one while they are decoded, so only one frame is in memory at its full size. One
draw of crop, mirror and augmentation serves all frames of a clip.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lavis_lite.errors import ConfigError, InputTypeError, UndefinedMethodError, did_you_mean
from lavis_lite.processors.augment import rand_augment
from lavis_lite.processors.image import ImageProcessor, checked_scale, cut, random_crop_box, resize, to_pixels
from lavis_lite.registry import registry

if TYPE_CHECKING:
    from torch import Tensor
# Sampling: frame numbers 0 .. length-1 in order, always the requested count. A shorter video repeats frames, so that
# clips of one batch have equal shapes.
Sampling = Callable[[int, int, random.Random], list[int]]
"""(frames in the video, frames to take, generator) -> frame numbers, not decreasing"""


def uniform(length: int, count: int, rng: random.Random | None = None) -> list[int]:
    """The first frame of each of `count` equal parts: LAVIS' choice for evaluation."""
    return [index * length // count for index in range(count)]


def within_segments(length: int, count: int, rng: random.Random) -> list[int]:
    """One random frame of each of `count` equal parts."""
    starts = [*uniform(length, count), length]
    return [rng.randrange(start, max(start + 1, end)) for start, end in zip(starts, starts[1:], strict=False)]


def head_and_tail(length: int, count: int, rng: random.Random) -> list[int]:
    """Different random frames, half of them from each half of the video: LAVIS' choice for training.

    If the count is odd, the second half has one more.
    """
    middle = length // 2
    return [*_some(0, middle or length, count // 2, rng), *_some(middle, length, count - count // 2, rng)]


def _some(first: int, end: int, count: int, rng: random.Random) -> list[int]:
    if end - first < count:
        return [first + index for index in uniform(end - first, count)]
    return sorted(rng.sample(range(first, end), count))


SAMPLINGS: dict[str, Sampling] = {"uniform": uniform, "random": within_segments, "headtail": head_and_tail}
"""values for `sampling` of a video processor"""


@runtime_checkable
class Frames(Protocol):
    """A video with access to single frames."""

    def __len__(self) -> int:
        """Number of frames."""

    def frames(self, numbers: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Upright RGB frames uint8[H, W, 3] by their numbers, which do not decrease."""


class _Held:
    """Frames that are in memory: uint8[T, H, W, 3]."""

    def __init__(self, clip: NDArray[np.uint8]) -> None:
        self.clip = clip

    def __len__(self) -> int:
        return len(self.clip)

    def frames(self, numbers: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        return (self.clip[number] for number in numbers)


class _VideoProcessor(ImageProcessor):
    """The base of video processors: chooses frames and stacks them."""

    takes = "video"

    def __init__(self, image_size: int | Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None,
                 n_frms: int, sampling: str) -> None:
        super().__init__(image_size, mean, std)
        if not isinstance(n_frms, int) or n_frms < 1:
            raise ConfigError(f"n_frms must be a number of frames, at least 1; it is {n_frms!r}.")
        if sampling not in SAMPLINGS:
            raise ConfigError(f"sampling {sampling!r} is unknown: {did_you_mean(sampling, SAMPLINGS)}")
        self.n_frms, self.choose = n_frms, SAMPLINGS[sampling]

    def pixels(self, video: Any, rng: random.Random) -> Tensor:
        """An open video, or frames uint8[T, H, W, 3] -> uint8[3, n_frms, height, width].

        Raises:
            InputTypeError: it is neither.
        """
        source: Any = _Held(video) if isinstance(video, np.ndarray) and video.ndim == 4 else video
        if not isinstance(source, Frames):
            raise InputTypeError(
                "a video processor takes an open video (lavis_lite.datasets.media.video.open_video) or frames as an "
                f"array [T, H, W, 3], not {type(video).__name__}.")
        numbers = self.choose(len(source), self.n_frms, rng)
        import torch

        return torch.stack(list(self.views(source.frames(numbers), rng)), dim=1)

    def views(self, frames: Iterator[NDArray[np.uint8]], rng: random.Random) -> Iterator[Tensor]:
        """Each frame -> uint8[3, height, width]."""
        raise UndefinedMethodError.of(self, "views")


@registry.register_processor("alpro_video_train")
class AlproVideoTrain(_VideoProcessor):
    """The training view of a clip: one random resized crop, mirror and RandAugment for all its frames.

    Args:
        image_size, mean, std: see `ImageProcessor`.
        min_scale, max_scale: share of the area that the crop covers.
        n_frms: frames of a clip.
        sampling: headtail (random frames, half of them from each half), random (one of each equal part) or uniform.
    """

    def __init__(self, image_size: int | Sequence[int] = 384, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, min_scale: float = 0.5, max_scale: float = 1.0,
                 n_frms: int = 4, sampling: str = "headtail") -> None:
        super().__init__(image_size, mean, std, n_frms, sampling)
        self.scale = checked_scale(min_scale, max_scale)

    def views(self, frames: Iterator[NDArray[np.uint8]], rng: random.Random) -> Iterator[Tensor]:
        """Each frame -> uint8[3, height, width]."""
        first = next(frames)
        box = random_crop_box(first.shape[0], first.shape[1], self.scale, rng)
        mirrored, seed = rng.random() < 0.5, rng.getrandbits(64)
        for frame in chain([first], frames):
            view = resize(cut(frame, box), self.size)
            yield rand_augment(view.flip(-1) if mirrored else view, random.Random(seed), count=2, level=5)


@registry.register_processor("alpro_video_eval")
class AlproVideoEval(_VideoProcessor):
    """Whole frames, stretched to the output size (LAVIS does not keep the aspect ratio here).

    Args:
        image_size, mean, std: see `ImageProcessor`.
        n_frms: frames of a clip.
        sampling: uniform; headtail and random are not the same twice.
    """

    def __init__(self, image_size: int | Sequence[int] = 256, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, n_frms: int = 4, sampling: str = "uniform") -> None:
        super().__init__(image_size, mean, std, n_frms, sampling)
        self.is_random = sampling != "uniform"

    def views(self, frames: Iterator[NDArray[np.uint8]], rng: random.Random) -> Iterator[Tensor]:
        """Each frame -> uint8[3, height, width]."""
        return (resize(to_pixels(frame), self.size) for frame in frames)
