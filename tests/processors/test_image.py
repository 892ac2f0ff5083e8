"""Image processors: pixels as PIL's, randomness from the argument alone, parameters checked."""

from __future__ import annotations

import inspect
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.processors.augment import OPERATIONS, rand_augment
from lavis_lite.processors.image import (
    MEAN,
    STD,
    Blip2ImageTrain,
    BlipImageEval,
    BlipImageTrain,
    ClipImageEval,
    ClipImageTrain,
    random_crop_box,
    resize,
    to_pixels,
)
from lavis_lite.registry import registry

TRAIN = [BlipImageTrain, Blip2ImageTrain, ClipImageTrain]
ALL = [*TRAIN, BlipImageEval, ClipImageEval]


def photograph(width: int = 120, height: int = 90) -> Image.Image:
    """Smooth tones with edges and noise, as photographs have."""
    y, x = np.mgrid[:height, :width]
    generator = np.random.default_rng(0)
    tones = np.stack([x * 255 / width, y * 255 / height, 255 * ((x // 7 + y // 5) % 2)], -1)
    return Image.fromarray(np.clip(tones + generator.normal(0, 12, tones.shape), 0, 255).astype(np.uint8))


def rows_then_columns(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """PIL's bicubic resize to (width, height) in the order that all its releases before 13 take."""
    return image.resize((size[0], image.height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def difference(pixels: torch.Tensor, image: Image.Image) -> int:
    return int(np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(image).astype(int)).max())


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (200, 150), (90, 30)])
def test_resize_equals_pil_within_one_grey_level(size):
    image = photograph()
    expected = rows_then_columns(image, (size[1], size[0]))
    assert difference(resize(to_pixels(image), size), expected) <= 1


def test_blip_eval_equals_pil_and_its_normalisation():
    image = photograph()
    expected = np.asarray(rows_then_columns(image, (32, 32))) / 255.0
    expected = torch.from_numpy(((expected - MEAN) / STD).transpose(2, 0, 1))
    got = BlipImageEval(32)(image)
    assert got.dtype == torch.float32 and got.shape == (3, 32, 32) and got.is_contiguous()
    assert (got - expected).abs().max() <= 1 / 255 / min(STD) + 1e-5


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (40, 40), (160, 20)])
def test_clip_eval_is_the_middle_at_the_shorter_side(shape):
    image = photograph(*shape)
    factor = 32 / min(shape)
    large = rows_then_columns(image, (int(shape[0] * factor), int(shape[1] * factor)))
    left, top = round((large.width - 32) / 2), round((large.height - 32) / 2)
    expected = large.crop((left, top, left + 32, top + 32))
    assert difference(ClipImageEval(32).pixels(image, random.Random(0)), expected) <= 1


def test_blip2_train_equals_pil_on_the_same_box():
    image, seed = photograph(), 5
    rng = random.Random(seed)
    top, left, height, width = random_crop_box(90, 120, (0.5, 1.0), rng)
    expected = rows_then_columns(image.crop((left, top, left + width, top + height)), (40, 40))
    if rng.random() < 0.5:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert difference(Blip2ImageTrain(40).pixels(image, random.Random(seed)), expected) <= 1


@pytest.mark.parametrize("cls", ALL)
def test_randomness_comes_from_the_argument_alone(cls):
    image, processor = photograph(), cls(24)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    views = [processor(image, random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) == (cls not in TRAIN)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()


def test_without_a_generator_pythons_global_one_is_used():
    image, processor = photograph(), BlipImageTrain(24)
    random.seed(3)
    first = processor(image)
    random.seed(3)
    assert torch.equal(first, processor(image))


@pytest.mark.parametrize("cls", ALL)
def test_sizes_and_normalisation_are_parameters(cls):
    image = photograph()
    assert cls([20, 30])(image, random.Random(0)).shape == (3, 20, 30)
    plain = cls(20, mean=[0, 0, 0], std=[1, 1, 1])(image, random.Random(0))
    assert 0 <= plain.min() and plain.max() <= 1
    default = cls(20)(image, random.Random(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(plain, default * std + mean, atol=1e-5)


@pytest.mark.parametrize(("cls", "size"), [(BlipImageTrain, 384), (Blip2ImageTrain, 364), (BlipImageEval, 384),
                                           (ClipImageTrain, 224), (ClipImageEval, 224)])
def test_defaults(cls, size):
    assert inspect.signature(cls).parameters["image_size"].default == size


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("cls", [BlipImageEval, Blip2ImageTrain])
def test_any_mode_is_taken(cls, mode):
    image = photograph().convert("L").convert("I").convert("I;16") if mode == "I;16" else photograph().convert(mode)
    assert cls(16)(image, random.Random(0)).shape == (3, 16, 16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("cls", ALL)
def test_extreme_shapes(cls, shape):
    assert cls(16)(Image.new("RGB", shape, (9, 9, 9)), random.Random(0)).shape == (3, 16, 16)


def test_crops_keep_to_their_shares_and_spread():
    rng, areas, aspects = random.Random(0), [], []
    for _ in range(2000):
        top, left, height, width = random_crop_box(90, 120, (0.5, 1.0), rng)
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width
        areas.append(height * width / (90 * 120))
        aspects.append(width / height)
    assert 0.48 < min(areas) and max(areas) <= 1
    assert 0.73 < min(aspects) and max(aspects) < 1.36
    assert 0.6 < sum(areas) / 2000 < 0.76 and abs(math.log(sum(aspects) / 2000)) < 0.2


def test_mirror_images_are_half():
    image, rng = photograph(), random.Random(0)
    processor = Blip2ImageTrain(8, min_scale=1.0, max_scale=1.0, mean=[0, 0, 0], std=[1, 1, 1])
    # red grows from left to right: mirrored where it falls
    mirrored = sum(view[0, :, 0].mean() > view[0, :, -1].mean() for view in (processor(image, rng) for _ in range(300)))
    assert 110 < mirrored < 190
    straight = ClipImageTrain(8)
    assert all(view[0, :, 0].mean() < view[0, :, -1].mean() for view in (straight(image, rng) for _ in range(50)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_keep_shape_and_draw_from_the_generator(operation):
    image = photograph(30, 20)
    one, two = (operation(image, 0.5, random.Random(1)) for _ in range(2))
    assert one.size == image.size and one.mode == "RGB" and one.tobytes() == two.tobytes()


def test_rand_augment_applies_none_one_or_two():
    pixels, rng = to_pixels(photograph(30, 20)), random.Random(0)
    outcomes = [rand_augment(pixels, rng, count=2, level=5) for _ in range(400)]
    assert all(outcome.shape == (3, 20, 30) and outcome.dtype == torch.uint8 for outcome in outcomes)
    unchanged = sum(torch.equal(outcome, pixels) for outcome in outcomes) / 400
    # 1/4 has no operation; 3 of 10 (identity, brightness and sharpness at level 5) change nothing
    assert abs(unchanged - (1 - 0.5 * 0.7) ** 2) < 0.09


def test_shift_is_in_pixels_and_filled_with_grey():
    shift = next(operation for operation in OPERATIONS if operation.__name__ == "_translate_x")
    image = Image.new("RGB", (20, 4), (255, 0, 0))
    columns = np.asarray(shift(image, 0.5, random.Random(0)))[0]
    assert (columns == (128, 128, 128)).all(1).sum() == 5


@pytest.mark.parametrize(("make", "words"), [
    (lambda: BlipImageEval(0), "image_size"),
    (lambda: BlipImageEval([3]), "image_size"),
    (lambda: BlipImageEval(8, mean=[1]), "mean needs 3 numbers"),
    (lambda: BlipImageEval(8, std=[1, 1, 0]), "std must be above 0"),
    (lambda: BlipImageTrain(8, min_scale=0.9, max_scale=0.5), "min_scale"),
])
def test_wrong_parameters_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_names():
    names = {"blip_image_train": BlipImageTrain, "blip_image_eval": BlipImageEval, "blip2_image_train": Blip2ImageTrain,
             "clip_image_train": ClipImageTrain, "clip_image_eval": ClipImageEval}
    assert {name: registry.get_processor_class(name) for name in names} == names


@pytest.mark.shared
def test_photographs_equal_pil_within_one_grey_level(shared_dir):
    paths = sorted((shared_dir / "data" / "coco_photos" / "images").iterdir())[:60]
    worst = 0
    for path in paths:
        image = Image.open(path).convert("RGB")
        expected = rows_then_columns(image, (224, 224))
        worst = max(worst, difference(resize(to_pixels(image), (224, 224)), expected))
    assert worst <= 1


@pytest.mark.parametrize(("item", "words"), [
    ("photos/1.jpg", r"takes a PIL image, .* not str 'photos/1.jpg'\. Give it PIL\.Image\.open\(path\)"),
    (Path("1.jpg"), r"PIL\.Image\.open\(path\)"), (b"\xff\xd8", r"Image\.open\(io\.BytesIO\(data\)\)"),
    (torch.zeros(3, 4, 4), r"not Tensor torch\.float32\[3, 4, 4\].* if no processor has made it already"),
    (np.zeros((4, 4), np.uint8), r"not ndarray uint8\[4, 4\]\."), (np.zeros((4, 4, 3)), r"ndarray float64\[4, 4, 3\]"),
    (None, "not NoneType None"), ([1] * 999, "not list"),
])
@pytest.mark.parametrize("name", ["blip_image_eval", "blip_image_train", "clip_image_eval", "blip2_image_train"])
def test_what_is_no_picture_is_told_with_the_way_to_make_one(name: str, item: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        registry.get_processor_class(name)(image_size=8)(item)
    assert isinstance(caught.value, TypeError) and len(str(caught.value)) < 300
