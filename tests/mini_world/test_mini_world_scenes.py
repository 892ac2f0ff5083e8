"""Scenes and pictures of the mini world: repeatable, split by seed, held-out pairs kept out, pixels in place."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from lavis_lite.mini_world.captions import make_captions
from lavis_lite.mini_world.questions import make_questions
from lavis_lite.mini_world.render import RGB, encode_jpeg, patch_owners, render
from lavis_lite.mini_world.scenes import CELL_SIZE, COLORS, HELD_OUT, SHAPES, SPLITS, make_scene
from lavis_lite.mini_world.world import WORLD_VERSION


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    assert make_scene(3, "val", 17) == make_scene(3, "val", 17)
    variants = [make_scene(*key) for key in ((3, "val", 17), (4, "val", 17), (3, "test", 17), (3, "val", 18))]
    assert len({scene.objects for scene in variants}) == 4


def test_pictures_are_repeatable_and_differ() -> None:
    scene = make_scene(3, "val", 17)
    assert np.array_equal(render(scene), render(scene))
    assert encode_jpeg(render(scene)) == encode_jpeg(render(scene))
    assert not np.array_equal(render(scene), render(make_scene(3, "test", 17)))


def test_no_split_repeats_a_scene_of_another() -> None:
    scenes = [make_scene(7, split, index).objects for split in SPLITS for index in range(300)]
    assert len(set(scenes)) == len(scenes)


def test_held_out_pairs_are_in_ood_scenes_only() -> None:
    for split in ("train", "val", "test", "vit"):
        pairs = {(item.color, item.shape) for index in range(1500) for item in make_scene(7, split, index).objects}
        assert not pairs & set(HELD_OUT)
        assert len(pairs) == len(COLORS) * len(SHAPES) - len(HELD_OUT)
    for index in range(300):
        found = [(item.color, item.shape) in HELD_OUT for item in make_scene(7, "ood", index).objects]
        assert sum(found) == 1


def test_objects_stand_in_cells_of_their_own_and_counts_are_even() -> None:
    scenes = [make_scene(7, "train", index) for index in range(800)]
    for scene in scenes:
        assert len({item.cell for item in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            assert (int(item.y // CELL_SIZE), int(item.x // CELL_SIZE)) == (item.row, item.column)
    counts = [sum(len(scene.objects) == count for scene in scenes) for count in (1, 2, 3, 4)]
    assert min(counts) > 150


def test_a_solid_object_has_its_color_at_its_center_after_jpeg() -> None:
    checked = 0
    for index in range(120):
        scene = make_scene(7, "test", index)
        pixels = np.asarray(Image.open(io.BytesIO(encode_jpeg(render(scene)))), np.float32)
        for item in scene.objects:
            if item.texture == "solid":
                seen = pixels[int(item.y), int(item.x)]
                nearest = min(RGB, key=lambda name: float(np.abs(seen - np.array(RGB[name])).sum()))
                assert nearest == item.color
                checked += 1
    assert checked > 100


def test_patch_owners_name_the_object_at_each_patch() -> None:
    for index in range(50):
        scene = make_scene(7, "vit", index)
        owners = patch_owners(scene, 8)
        assert owners.shape == (64,)
        for number, item in enumerate(scene.objects):
            assert owners[int(item.y // 8) * 8 + int(item.x // 8)] == number
        assert (owners == -1).sum() > 20


def test_the_world_changes_only_with_its_version() -> None:
    """A digest of scenes and words; whoever changes it on purpose raises WORLD_VERSION, so old folders are redone."""
    digest = hashlib.sha256()
    for split in ("train", "ood"):
        for index in range(40):
            scene = make_scene(7, split, index)
            digest.update(repr((scene.to_json(), make_captions(scene), make_questions(scene))).encode())
    assert (WORLD_VERSION, digest.hexdigest()[:16]) == (1, "f975957a94a24bba")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(KeyError):
        make_scene(7, "training", 0)
