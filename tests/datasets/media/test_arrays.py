"""Arrays in the place of images: every container gives the same numbers, and what is wrong with one is said."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from lavis_lite.config.schema import BuildInfo, FileConfig, StorageConfig
from lavis_lite.datasets.builders.images import ImageCaptionBuilder, ImageDatasetConfig, ImageShardBuilder, StreamConfig
from lavis_lite.datasets.media.images import BadSample
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import ConfigError

ARRAYS = {f"item{number}": np.random.default_rng(number).normal(size=(number + 1, 3)).astype(np.float32)
          for number in range(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"image": name, "caption": f"caption of {name}"} for name in ARRAYS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
        safetensors.numpy.save_file({"features": array, "other": array[:1]}, tmp_path / f"{name}.safetensors")
    safetensors.numpy.save_file(ARRAYS, tmp_path / "all.safetensors")
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, array in ARRAYS.items():
            file[name] = array
    return tmp_path


def data_of(folder: Path, **streams: dict[str, Any]) -> Any:
    cfg = ImageDatasetConfig(build_info=BuildInfo(annotations={"train": FileConfig(storage=str(folder / "rows.json"))},
                                                  images=StorageConfig(storage=str(folder))),
                             arrays={name: StreamConfig(**keys) for name, keys in streams.items()})
    return ImageCaptionBuilder("arrays", cfg).build("train", training=True)


@pytest.mark.parametrize("keys", [
    {"suffix": ".npy"}, {"suffix": ".safetensors"}, {"storage": "all.h5"}, {"storage": "all.safetensors"},
    {"storage": ".", "suffix": ".npy"}], ids=str)
def test_every_container_gives_the_same_numbers(folder, keys):
    if "storage" in keys:
        keys = keys | {"storage": str(folder / keys["storage"])}
    data = pickle.loads(pickle.dumps(data_of(folder, one={**keys, "tokens": 4})))
    for index, array in enumerate(ARRAYS.values()):
        image = data[index]["image"]
        assert image.shape == (4, 3) and torch.equal(image[:len(array)], torch.from_numpy(array))
        assert bool(image[len(array):].isnan().all())


def test_members_of_webdataset_tars(folder):
    import tarfile

    shards = folder / "shards"
    shards.mkdir()
    with tarfile.open(shards / "000000.tar", "w") as tar:
        for name in ARRAYS:
            (folder / f"{name}.txt").write_text(f"caption of {name}")
            for suffix in (".npy", ".txt"):
                tar.add(folder / f"{name}{suffix}", f"{name}{suffix}")
    index_folder(shards, log=lambda text: None)
    cfg = ImageDatasetConfig(build_info=BuildInfo(storage=str(shards)), arrays={"one": StreamConfig(tokens=4)})
    data = ImageShardBuilder("arrays", cfg).build("train", training=True)
    found = sorted((data[index]["text_input"], data[index]["image"][:index + 1].tolist()) for index in range(3))
    assert found == [(f"caption of {name}", array.tolist()) for name, array in ARRAYS.items()]


def test_streams_follow_each_other_at_fixed_places(folder):
    data = data_of(folder, one={"suffix": ".npy", "tokens": 3}, two={"storage": str(folder / "all.h5"), "tokens": 5})
    image = data[1]["image"]
    assert image.shape == (8, 3) and image.isnan().any(1).tolist() == [False, False, True, False, False, *[True] * 3]


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((9, 3), np.float32), r"shape \(9, 3\); features have shape \(P, width\), and `tokens` allows P up to 4"),
    (np.zeros(3, np.float32), r"shape \(3,\); features have shape"),
    (np.array([["a"]]), "is not an array of numbers"),
    (np.array([[np.nan, 1.0]], np.float32), "values that are NaN or infinite"),
    (b"junk", "is not an array in .npy or .safetensors"),
    (np.array([[{}]], dtype=object), "is not an array in .npy or .safetensors"),  # numpy would unpickle it
])
def test_wrong_arrays_are_bad_samples_that_say_why(folder, array, words):
    path = folder / "item1.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    with pytest.raises(BadSample, match=words):
        data_of(folder, one={"suffix": ".npy", "tokens": 4})[1]


def test_what_is_missing_is_named(folder):
    with pytest.raises(BadSample, match="item9"):
        data_of(folder, one={"storage": str(folder / "all.h5")}).folder.load("item9")
    with pytest.raises(ConfigError, match=r"datasets.arrays.arrays.one.storage: .*al.h5: there is no such folder or "
                                          r"file. did you mean 'all.h5'|all.h5"):
        data_of(folder, one={"storage": str(folder / "al.h5")})


def test_streams_of_other_widths_are_refused(folder):
    np.save(folder / "wide_item0.npy", np.zeros((2, 5), np.float32))
    (folder / "wide").mkdir()
    np.save(folder / "wide/item0.npy", np.zeros((2, 5), np.float32))
    data = data_of(folder, one={"suffix": ".npy"}, two={"storage": str(folder / "wide"), "suffix": ".npy"})
    with pytest.raises(BadSample, match=r"streams of different widths \(one \(1, 3\), two \(2, 5\)\)"):
        data[0]
