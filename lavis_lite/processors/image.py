"""Image processors under LAVIS' names: PIL image, or its pixels uint8[H, W, 3] -> normalised float32[3, S, S].

Crops and resizes run on uint8 tensors with torch's antialiased bicubic kernel. It is about twice as fast as the PIL
pipeline and within one grey level of it. Values become float only at the end. Pixels are cropped before they are
copied. All randomness comes from the `rng` argument, and is the same for an image and for its pixels.

Any picture of Pillow becomes upright 8-bit RGB with its own tones. Pillow's plain `convert("RGB")` clips 16-bit pixels
to white and shows whatever colour lies under transparent pixels; both are corrected here. Transparent pixels become
white, because most such pictures were drawn for a white page.

Functions import torch when they compute: a configuration is checked against these classes without it.
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lavis_lite.errors import ConfigError, InputTypeError, UndefinedMethodError, shown
from lavis_lite.processors.base import BaseProcessor
from lavis_lite.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_ASPECT = (math.log(3 / 4), math.log(4 / 3))

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""top, left, height, width in pixels"""
Picture = Image.Image | NDArray[np.uint8]
"""a PIL image of any mode, or upright RGB pixels uint8[H, W, 3]"""


def to_pixels(picture: Picture) -> Tensor:
    """A picture -> uint8[3, H, W], channels last in memory (what the resize kernel is fastest on).

    Pixels that come as an array are shared with it, not copied.
    """
    array = np.array(to_rgb(picture), copy=True) if isinstance(picture, Image.Image) else picture
    import torch

    return torch.from_numpy(array).permute(2, 0, 1)


def check_picture(item: Any) -> None:
    """Refuse a path, the bytes of a file, a tensor, or an array with another shape or dtype.

    Raises:
        InputTypeError: the message names the type and how to convert it.
    """
    if isinstance(item, Image.Image):
        return
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3:
        return
    from torch import Tensor

    ways = {str: "PIL.Image.open(path)", os.PathLike: "PIL.Image.open(path)",
            (bytes, bytearray): "PIL.Image.open(io.BytesIO(data))",
            Tensor: "torchvision.transforms.functional.to_pil_image(tensor), if no processor has made it already"}
    way = next((f" Give it {way}." for kind, way in ways.items() if isinstance(item, kind)), "")  # type: ignore[arg-type]
    what = f"{item.dtype}{list(item.shape)}" if isinstance(item, (np.ndarray, Tensor)) else shown(item, 60)
    raise InputTypeError("an image processor takes a PIL image, or RGB pixels as an array uint8[H, W, 3], not "
                         f"{type(item).__name__} {what}.{way}")


def cut(picture: Picture, box: Box) -> Tensor:
    """The pixels of a box: uint8[3, height, width]. PIL images must be RGB."""
    top, left, height, width = box
    if isinstance(picture, Image.Image):  # cut before the copy out of PIL, which costs a third of the resize
        return to_pixels(picture.crop((left, top, left + width, top + height)))
    return to_pixels(picture[top:top + height, left:left + width])


def resize(pixels: Tensor, size: Size) -> Tensor:
    """uint8[3, H, W] -> uint8[3, *size], bicubic with antialiasing, rows first and then columns.

    That is the order of Pillow up to version 12; Pillow 13 takes the cheaper order. The two differ by more than a grey
    level if the first pass saturates. In photographs that is about one value in 30,000 at 224 pixels, and one in 5,000
    at 364.
    """
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    import torch
    import torch.nn.functional as F

    batch = pixels.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False)[0]


def random_crop_box(height: int, width: int, scale: tuple[float, float], rng: random.Random) -> Box:
    """A box with an area share from `scale` and an aspect ratio from 3/4 to 4/3; the middle if none fits."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*_ASPECT))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
            return top, left, box_height, box_width
    return _middle_box(height, width)


def _middle_box(height: int, width: int) -> Box:
    """The largest middle box with an aspect ratio (width / height) within 3/4 .. 4/3."""
    box_width = max(1, min(width, round(height * 4 / 3)))
    box_height = max(1, min(height, round(width * 4 / 3)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class ImageProcessor(BaseProcessor):
    """The base of image and video processors: output size and normalisation.

    Args:
        image_size: output pixels: one number (square) or [height, width].
        mean, std: per channel, of values in 0..1; CLIP's by default.
    """

    takes = "pixels"

    def __init__(self, image_size: int | Sequence[int], mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None) -> None:
        self.size = _checked_size(image_size)
        self.normalisation = tuple(mean or MEAN), tuple(std or STD)
        centre, spread = _channels("mean", mean or MEAN), _channels("std", std or STD)
        if not (spread > 0).all():
            raise ConfigError(f"an image processor's std must be above 0; it is {list(std or STD)}.")
        self._scale, self._shift = np.float32(1.0) / (np.float32(255.0) * spread), -centre / spread
        self._shaped: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, item: Any, rng: random.Random | None = None) -> Tensor:
        """PIL image, or its pixels uint8[H, W, 3] -> float32[3, height, width].

        Raises:
            InputTypeError: it is neither.
        """
        if self.takes == "pixels":
            check_picture(item)
        # the module is Python's global generator
        pixels = self.pixels(item, rng or random)  # type: ignore[arg-type]
        from lavis_lite.processors.pixels import Pixels, are_kept

        if are_kept() and type(self).normalise is ImageProcessor.normalise:
            return Pixels(pixels, *self._factors(pixels))
        return self.normalise(pixels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8[3, ..., H, W] -> float32 of the same shape, 0..255 becoming (0..1 - mean) / std."""
        from lavis_lite.processors.pixels import normalise

        return normalise(pixels, *self._factors(pixels))

    def _factors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, shaped to go with the pixels: the same tensors each time."""
        if pixels.ndim not in self._shaped:
            import torch

            channels = (3,) + (1,) * (pixels.ndim - 1)
            scale, shift = (torch.from_numpy(values).view(channels) for values in (self._scale, self._shift))
            self._shaped[pixels.ndim] = scale, shift
        return self._shaped[pixels.ndim]

    def pixels(self, image: Picture, rng: random.Random) -> Tensor:
        """A picture -> uint8[3, height, width], before normalisation."""
        raise UndefinedMethodError.of(self, "pixels")


def _checked_size(image_size: int | Sequence[int]) -> Size:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ConfigError(f"image_size must be a number of pixels, or [height, width]; it is {image_size!r}.")
    return size[0], size[1]


def _channels(name: str, values: Sequence[float]) -> NDArray[np.float32]:
    if len(values) != 3:
        raise ConfigError(f"an image processor's {name} needs 3 numbers (R, G, B); it has {list(values)}.")
    return np.array([float(value) for value in values], np.float32)


def checked_scale(smallest: float, largest: float) -> tuple[float, float]:
    """The shares of the area that a crop may cover.

    Raises:
        ConfigError: they are not shares, or out of order.
    """
    if not 0 < smallest <= largest <= 1:
        raise ConfigError(f"crops need 0 < min_scale <= max_scale <= 1; they are {smallest} and {largest}.")
    return smallest, largest


class _RandomCrop(ImageProcessor):
    """Random resized crop, mirrored with probability one half.

    Args:
        image_size, mean, std: see `ImageProcessor`.
        min_scale, max_scale: share of the area that a crop covers.
    """

    mirror = True

    def __init__(self, image_size: int | Sequence[int], mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, min_scale: float = 0.5, max_scale: float = 1.0) -> None:
        super().__init__(image_size, mean, std)
        self.scale = checked_scale(min_scale, max_scale)

    def pixels(self, image: Picture, rng: random.Random) -> Tensor:
        """A random crop, resized and perhaps mirrored: uint8[3, height, width]."""
        if isinstance(image, Image.Image):
            image = to_rgb(image)
            height, width = image.height, image.width
        else:
            height, width = image.shape[:2]
        crop = resize(cut(image, random_crop_box(height, width, self.scale, rng)), self.size)
        return crop.flip(-1) if self.mirror and rng.random() < 0.5 else crop


@registry.register_processor("blip_image_train")
class BlipImageTrain(_RandomCrop):
    """BLIP's training view: random resized crop, mirror, then RandAugment of two operations at level 5."""

    def __init__(self, image_size: int | Sequence[int] = 384, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, min_scale: float = 0.5, max_scale: float = 1.0) -> None:
        super().__init__(image_size, mean, std, min_scale, max_scale)

    def pixels(self, image: Picture, rng: random.Random) -> Tensor:
        """uint8[3, height, width]."""
        from lavis_lite.processors.augment import rand_augment  # no other processor here augments

        return rand_augment(super().pixels(image, rng), rng, count=2, level=5)


@registry.register_processor("blip2_image_train")
class Blip2ImageTrain(_RandomCrop):
    """BLIP-2's training view: random resized crop and mirror."""

    def __init__(self, image_size: int | Sequence[int] = 364, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, min_scale: float = 0.5, max_scale: float = 1.0) -> None:
        super().__init__(image_size, mean, std, min_scale, max_scale)


@registry.register_processor("clip_image_train")
class ClipImageTrain(_RandomCrop):
    """CLIP's training view: a random resized crop of nearly the whole picture, never mirrored."""

    mirror = False

    def __init__(self, image_size: int | Sequence[int] = 224, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, min_scale: float = 0.9, max_scale: float = 1.0) -> None:
        super().__init__(image_size, mean, std, min_scale, max_scale)


@registry.register_processor("blip_image_eval")
class BlipImageEval(ImageProcessor):
    """The whole picture, stretched to the output size (LAVIS does not keep the aspect ratio here)."""

    is_random = False

    def __init__(self, image_size: int | Sequence[int] = 384, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None) -> None:
        super().__init__(image_size, mean, std)

    def pixels(self, image: Picture, rng: random.Random) -> Tensor:
        """uint8[3, height, width]."""
        return resize(to_pixels(image), self.size)


@registry.register_processor("clip_image_eval")
class ClipImageEval(ImageProcessor):
    """The picture resized until it covers the output size, then its middle."""

    is_random = False

    def __init__(self, image_size: int | Sequence[int] = 224, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None) -> None:
        super().__init__(image_size, mean, std)

    def pixels(self, image: Picture, rng: random.Random) -> Tensor:
        """uint8[3, height, width]."""
        height, width = self.size
        whole = _without_far_ends(to_pixels(image), 8 * max(height / width, width / height))
        factor = max(height / whole.shape[1], width / whole.shape[2])
        covering = max(height, int(whole.shape[1] * factor)), max(width, int(whole.shape[2] * factor))
        top, left = round((covering[0] - height) / 2), round((covering[1] - width) / 2)
        return resize(whole, covering)[:, top:top + height, left:left + width]


def _without_far_ends(pixels: Tensor, most: float) -> Tensor:
    """The middle of very long pictures: 1 x 20,000 pixels would become gigabytes when the short side is resized."""
    height, width = pixels.shape[1:]
    keep_height, keep_width = min(height, math.ceil(width * most)), min(width, math.ceil(height * most))
    top, left = (height - keep_height) // 2, (width - keep_width) // 2
    return pixels[:, top:top + keep_height, left:left + keep_width]


# any picture -> RGB ---------------------------------------------------------------------------------------------------
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = {5, 6, 7, 8}
_FLIPPED_ROWS, _FLIPPED_COLUMNS = {3, 4, 7, 8}, {2, 3, 6, 7}
"""EXIF orientations that transpose the picture, and those that then reverse its rows and its columns"""
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error)


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of a picture as upright RGB, 8 bits per channel.

    Raises:
        ValueError: float or 32-bit integer pixels of unknown range.
    """
    turned = orientation(image)
    image = _eight_bit_rgb(image)
    return image.transpose(_UPRIGHT[turned]) if turned in _UPRIGHT else image


def upright(pixels: NDArray[Any], turned: int) -> NDArray[Any]:
    """Stored pixels [H, W, 3] -> upright pixels by EXIF's orientation (1..8; other values: unchanged)."""
    if turned not in _UPRIGHT:
        return pixels
    if turned in _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (-1 if turned in flipped else 1 for flipped in (_FLIPPED_ROWS, _FLIPPED_COLUMNS))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8; 1 (unchanged pixels) if the header cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _EXIF_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_from_16_bit(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(_from_float(np.asarray(image)))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        page = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, shown).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(pixels: np.ndarray) -> np.ndarray:
    values = pixels.astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}: neither 8 nor 16 bits")
    return ((values + 128) // 257).astype(np.uint8)


def _from_float(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):  # also true for NaN
        raise ValueError(f"float pixels from {low:g} to {high:g}: expected 0..1 or 0..255")
    return np.rint(pixels * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
