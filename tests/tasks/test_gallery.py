"""Which images and captions are searched, and what is said when they do not fit."""

from __future__ import annotations

import pytest
import torch

from lavis_lite.errors import DataError
from lavis_lite.metrics.retrieval import ranks_from_candidates
from lavis_lite.tasks.retrieval import RetrievalRunConfig, RetrievalTask
from lavis_lite.tasks.retrieval_parts import Gallery, check_captions
from tests.tasks.fakes import dataset


def test_all_captions_in_the_order_of_the_data_set():
    split = dataset(4)
    gallery = Gallery.of(split, [2, 0, 3, 1])
    assert gallery.images == [0, 1, 2, 3] and gallery.texts == split.text
    assert gallery.img2txt == [split.img2txt[image] for image in range(4)]
    assert gallery.txt2img == [[split.txt2img[text]] for text in range(len(split.text))]


def test_first_captions_and_missing_images_are_renumbered():
    split = dataset(4)  # 2, 1, 3, 2 captions
    gallery = Gallery.of(split, [3, 2], captions_per_image=2)
    assert gallery.images == [2, 3]
    assert gallery.texts == [split.text[index] for index in (3, 4, 6, 7)]
    assert gallery.img2txt == [[0, 1], [2, 3]] and gallery.txt2img == [[0], [0], [1], [1]]


def test_a_caption_of_several_images_finds_each_of_them():
    split = dataset(4)
    split.img2txt[3] = [*split.img2txt[3], split.img2txt[0][0]]
    gallery = Gallery.of(split, range(4))
    assert gallery.txt2img[0] == [0, 3] and gallery.txt2img[1] == [0]
    assert ranks_from_candidates(torch.tensor([[0, 1, 2, 3]]), gallery.txt2img[:1]).tolist() == [0]


def test_an_image_twice_is_refused():
    with pytest.raises(ValueError, match="image 1 .* twice"):
        Gallery.of(dataset(3), [0, 1, 2, 1])


def test_no_image_is_a_data_error():
    with pytest.raises(DataError, match="no image"):
        Gallery.of(dataset(3), [])


def test_splits_that_cannot_be_searched_are_refused_with_their_place():
    check_captions(dataset(3), "val")
    with pytest.raises(DataError, match=r"'val' .*2 of its 4 images have no caption, the first at row 1"):
        check_captions(dataset(4, captions=(1, 0)), "val")
    task = RetrievalTask(RetrievalRunConfig())
    with pytest.raises(DataError, match=r"'val': run.task=retrieval cannot evaluate list, .*no img2txt, text.*"
                                        r"image_caption, image_retrieval"):
        task.before_evaluation([], "val")
