"""Video processors: which frames, one crop for all of them, and the values of the image processors."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_lite.errors import ConfigError
from lavis_lite.processors.image import BlipImageEval
from lavis_lite.processors.video import (
    SAMPLINGS,
    AlproVideoEval,
    AlproVideoTrain,
    head_and_tail,
    uniform,
    within_segments,
)


def still(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Recorded:
    """A video of equal pixels per frame that notes which frames were asked for."""

    def __init__(self, length: int) -> None:
        self.length, self.asked, self.held, self.most = length, [], 0, 0

    def __len__(self) -> int:
        return self.length

    def frames(self, numbers):
        for number in numbers:
            self.asked.append(number)
            yield np.full((6, 8, 3), number, np.uint8)


def test_uniform_is_the_first_frame_of_equal_parts():
    assert uniform(280, 4) == [0, 70, 140, 210]
    assert uniform(10, 3) == [0, 3, 6]
    assert uniform(2, 5) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_samplings_give_as_many_as_asked_for_in_order(name, count, length):
    for seed in range(20):
        numbers = SAMPLINGS[name](length, count, random.Random(seed))
        assert len(numbers) == count and numbers == sorted(numbers)
        assert 0 <= numbers[0] and numbers[-1] < length
        if name != "headtail" and length >= count or length >= 2 * count:
            assert len(set(numbers)) == count


def test_random_samplings_keep_to_their_parts_and_reach_all_frames():
    rng, seen, halves = random.Random(0), set(), set()
    for _ in range(300):
        numbers = within_segments(12, 4, rng)
        assert [number // 3 for number in numbers] == [0, 1, 2, 3]
        seen |= set(numbers)
        both = head_and_tail(9, 4, rng)
        assert sum(number < 4 for number in both) == 2
        halves |= set(both)
    assert seen == set(range(12)) and halves == set(range(9))


def test_only_the_chosen_frames_are_decoded():
    video = Recorded(100)
    clip = AlproVideoEval(8, n_frms=4)(video)
    assert video.asked == [0, 25, 50, 75] and clip.shape == (3, 4, 8, 8) and clip.dtype == torch.float32
    assert AlproVideoTrain(8, n_frms=3, sampling="random")(video, random.Random(0)).shape == (3, 3, 8, 8)


def test_frames_of_the_evaluation_view_are_the_image_view():
    clip = np.stack([still(), 255 - still()])
    got = AlproVideoEval([20, 24], n_frms=2)(clip)
    for place in range(2):
        assert torch.equal(got[:, place], BlipImageEval([20, 24])(Image.fromarray(clip[place])))


def test_one_crop_mirror_and_augmentation_for_all_frames():
    clip, processor = np.stack([still()] * 3), AlproVideoTrain(16, n_frms=3, sampling="uniform")
    views = [processor(clip, random.Random(seed)) for seed in range(6)]
    for view in views:
        assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])
    assert len({view.sum().item() for view in views}) == 6
    assert torch.equal(views[2], processor(clip, random.Random(2)))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: AlproVideoEval(n_frms=0), "n_frms must be"),
    (lambda: AlproVideoEval(sampling="unifrom"), "uniform"),
    (lambda: AlproVideoTrain(min_scale=0), "min_scale"),
])
def test_wrong_parameters_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_picture_is_no_video():
    with pytest.raises(TypeError, match="open_video"):
        AlproVideoEval(8)(Image.new("RGB", (4, 4)))
