"""Kept features: the same whatever is stopped in between, refused where anything differs, exact in fp32."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from lavis_lite.checkpoints.weights import encoder_identity
from lavis_lite.cli.data_cache_features import _training_splits
from lavis_lite.datasets.builders.images import ImageCaptionBuilder
from lavis_lite.datasets.features import writer as feature_writer
from lavis_lite.datasets.features.cache import FeatureFolder, file_of, refuse_random
from lavis_lite.datasets.features.writer import FeatureJob, image_names, write_features
from lavis_lite.datasets.media.images import BadSample, ImageFolder
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.models.vision.encoder import VisionEncoder
from lavis_lite.processors.video import AlproVideoEval

EVAL = {"name": "blip_image_eval", "image_size": 16}
ENCODER = {"name": "toy", "image_size": 16, "precision": "fp32", "sha256": "0" * 64}


def encode(image: Tensor) -> Tensor:
    """Eight patches of six numbers."""
    return image.reshape(len(image), 8, 96)[:, :, :6] * 1.2345


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture
def job(coco_section, tmp_path) -> Any:
    """(**changes) -> the job of eight images, three per file."""
    coco_section.vis_processor.train = dict(EVAL)

    def make(**changes: Any) -> FeatureJob:
        data = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
        settings = {"images": image_names([data.table]), "folder": data.folder, "vis": data.vis_processor,
                    "encode": encode, "facts": {"encoder": ENCODER, "processor": dict(EVAL)}, "out": tmp_path / "kept",
                    "dtype": "fp32", "per_file": 3, "batch_size": 2}
        return FeatureJob(**(settings | changes))

    return make


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("fp16", torch.float16),
                                             ("bf16", torch.bfloat16)])
def test_features_are_what_the_encoder_gives(job, dtype, kind):
    done = job(dtype=dtype)
    assert write_features(done, log=quiet)
    kept = pickle.loads(pickle.dumps(FeatureFolder(done.out)))
    for name in done.images:
        (wanted,) = encode(done.vis(done.folder.load(name))[None]).to(kind)
        assert kept.load(name).dtype == kind and torch.equal(kept.load(name), wanted)
    stored = safetensors.torch.load_file(done.out / file_of(0))["features"]  # other programs can read it
    assert stored.dtype == kind and torch.equal(stored[1], kept.load(done.images[1]))


def test_workers_start_as_the_run_wants_them_to(job, monkeypatch):
    """A process that threads must not fork asks for spawn or forkserver."""
    asked = []
    make = feature_writer.Loader

    def noted(dataset: Any, workers: int, method: str | None, **settings: Any) -> Any:
        asked.append((workers, method))
        return make(dataset, 0, **settings)

    monkeypatch.setattr(feature_writer, "Loader", noted)
    assert write_features(job(workers=2, start_method="spawn"), log=quiet)
    assert asked and set(asked) == {(2, "spawn")}


def test_training_reads_them_in_place_of_images(job, coco_section):
    done = job()
    write_features(done, log=quiet)
    plain = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    coco_section.features = str(done.out)
    kept = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    for index in (0, 7, 15):
        a, b = plain[index], kept[index]
        assert torch.equal(encode(a.pop("image")[None])[0], b.pop("image")) and a == b
    assert ImageCaptionBuilder("tiny", coco_section).build("train", training=False)[0]["image"].shape == (3, 16, 16)


def test_a_stopped_job_goes_on(job, monkeypatch):
    done, calls = job(), []

    def stop(image: Tensor) -> Tensor:
        calls.append(len(image))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(image)

    with pytest.raises(KeyboardInterrupt):
        write_features(job(encode=stop), log=quiet)
    with pytest.raises(DataError, match="not complete"):
        FeatureFolder(done.out)
    stamp = (done.out / file_of(0)).stat().st_mtime_ns
    assert write_features(done, log=quiet)
    assert (done.out / file_of(0)).stat().st_mtime_ns == stamp and len(list(done.out.glob("features-*"))) == 3
    assert not list(done.out.glob(".tmp-*"))


def test_a_file_with_an_image_that_has_changed_is_written_anew(job, coco_folder):
    write_features(job(), log=quiet)
    image = coco_folder / "images" / "4.png"
    image.write_bytes((coco_folder / "images" / "5.png").read_bytes() + b" ")
    said: list[str] = []
    assert write_features(job(), log=said.append) and [line[:24] for line in said] == [file_of(1)[:24]]
    kept = FeatureFolder(job().out)
    assert torch.equal(kept.load("4.png"), kept.load("5.png"))


def test_training_refuses_features_of_an_image_that_has_changed(job, coco_folder, coco_section, monkeypatch):
    """Uncompressed pictures keep their size; a copied folder has other times and the same pictures."""
    pictures, read = coco_folder / "images", ImageFolder.read
    for number in range(8):
        Image.new("RGB", (20, 20), (number, 90, 10)).save(pictures / f"{number}.png", format="BMP")
    done = job()
    write_features(done, log=quiet)
    for path in pictures.iterdir():
        os.utime(path, (1, 1))
    coco_section.features = str(done.out)
    data = pickle.loads(pickle.dumps(ImageCaptionBuilder("tiny", coco_section).build("train", training=True)))
    reads: list[str] = []
    monkeypatch.setattr(type(data.folder.images), "read", lambda folder, name: reads.append(name) or read(folder, name))
    assert data[0]["image"].shape == data[0]["image"].shape == (8, 6) and reads == ["0.png"], "once, not each epoch"
    changed = bytearray((pictures / "0.png").read_bytes())
    changed[200] ^= 99
    (pictures / "0.png").write_bytes(changed)
    with pytest.raises(BadSample, match=r"^0.png: has changed since its features in .*; run .*cache-features again$"):
        data[0]
    said: list[str] = []
    assert write_features(done, log=said.append) and [line[:24] for line in said] == [file_of(0)[:24]]
    assert ImageCaptionBuilder("tiny", coco_section).build("train", training=True)[0]["image"].shape == (8, 6)
    shutil.rmtree(pictures)  # features may be on a machine without the images
    pictures.mkdir()
    assert ImageCaptionBuilder("tiny", coco_section).build("train", training=True)[0]["image"].shape == (8, 6)


def test_processes_share_the_files(job):
    done = job()
    assert not write_features(done, rank=1, world_size=2, log=quiet)
    assert [path.name for path in done.out.iterdir()] == [file_of(1)]
    assert write_features(done, rank=0, world_size=2, log=quiet)
    assert FeatureFolder(done.out).manifest["images"] == 8


def test_another_encoder_or_processor_is_refused(job, coco_section):
    done = job()
    write_features(done, log=quiet)
    kept = FeatureFolder(done.out)
    kept.check_encoder(ENCODER)
    with pytest.raises(ConfigError, match="another vision encoder: sha256 '000"):
        kept.check_encoder({**ENCODER, "sha256": "1" * 64})
    coco_section.features = str(done.out)
    coco_section.vis_processor.train = {**EVAL, "image_size": 32}
    with pytest.raises(ConfigError, match=r"tiny.features: .* was made with the processor .*16.* is .*32"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    coco_section.vis_processor.train = {"name": "blip2_image_train", "image_size": 16}
    with pytest.raises(ConfigError, match="blip2_image_train changes images at random"):
        ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    with pytest.raises(ConfigError, match="features are kept of images, not of videos"):
        refuse_random(AlproVideoEval(), "datasets.clips", {})


@pytest.mark.parametrize("changes", [{"layer": -3}, {"layer": [-2, -4]}, {"prefix": "drop"}, {"heads": 4},
                                     {"norm_eps": 1e-3}])
def test_an_encoder_of_the_same_weights_that_computes_something_else_is_another(job, changes):
    """Neither the layers that are read, nor heads, nor an epsilon show in the weights' names and shapes."""
    def identity(**settings: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        shape = {"depth": 4, "width": 32, "heads": 2, "patch_size": 8, "layer": [-2, -3]} | settings
        return encoder_identity(SimpleNamespace(vision_encoder=VisionEncoder("clip_L", 16, frozen=True, **shape)))

    done = job(facts={"encoder": identity(), "processor": dict(EVAL)})
    write_features(done, log=quiet)
    kept = FeatureFolder(done.out)
    kept.check_encoder(identity())
    with pytest.raises(ConfigError, match="another vision encoder"):
        kept.check_encoder(identity(**changes))


def test_bad_images_stop_the_job_or_are_left_out(job, coco_folder):
    (coco_folder / "images" / "5.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"5.png: is not an image.*on_bad_sample=skip"):
        write_features(job(), log=quiet)
    write_features(job(skip_bad=True), log=quiet)
    kept = FeatureFolder(job().out)
    assert kept.load("4.png").shape == (8, 6)
    with pytest.raises(BadSample, match=r"5.png: has no features in"):
        kept.load("5.png")
    (coco_folder / "images" / "5.png").write_bytes((coco_folder / "images" / "4.png").read_bytes())
    write_features(job(), log=quiet)
    assert torch.equal(FeatureFolder(job().out).load("5.png"), kept.load("4.png"))


def test_damage_is_found(job):
    done = job()
    write_features(done, log=quiet)
    path = done.out / file_of(1)
    content = bytearray(path.read_bytes())
    content[-300] ^= 1  # inside the features, between hashes and checksums
    path.write_bytes(content)
    kept, bad = FeatureFolder(done.out), 0
    for name in done.images:
        try:
            kept.load(name)
        except BadSample as fault:
            bad += 1
            assert file_of(1) in str(fault) and "not those that were written" in str(fault)
    assert bad == 1
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="its size is not what"):
        FeatureFolder(done.out)
    (done.out / "manifest.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(DataError, match="cannot be used as a manifest of features"):
        FeatureFolder(done.out)


def test_splits_with_images_of_their_own_have_no_common_features(coco_folder, section):
    """An image of one split may be called as one of the other, and would get its features."""
    for split in ("train", "val"):
        (coco_folder / split).mkdir()
        (coco_folder / split / "rows.json").write_text(json.dumps([{"image": "0.png", "caption": "a"}]))
    cfg = section(coco_folder, {split: f"{split}/rows.json" for split in ("train", "val")}, builder="image_caption")
    config: Any = SimpleNamespace(datasets={"own": cfg}, run=SimpleNamespace(train_splits=["train", "val"]))
    assert len(_training_splits(config, "own")) == 2
    cfg.build_info.images.storage = None
    with pytest.raises(DataError, match=r"train, val have images of their own \(.*train, .*val\).*images.storage"):
        _training_splits(config, "own")


def test_every_image_is_encoded_once(job, monkeypatch):
    seen: list[int] = []
    done = job(encode=lambda image: (seen.append(len(image)), encode(image))[1])
    write_features(done, log=quiet)
    write_features(done, log=quiet)
    assert len(seen) == 5 and len(done.images) == 8  # of sixteen captions; twice a file has three images
    assert feature_writer.DTYPES.keys() == {"bf16", "fp16", "fp32"}


def test_an_encoder_that_trains_has_no_features():
    with pytest.raises(ConfigError, match="need a frozen vision encoder"):
        encoder_identity(SimpleNamespace(vision_encoder=SimpleNamespace(frozen=False)))


def test_the_last_batch_is_as_large_as_the_others(job):
    # a matrix product of another shape may round otherwise: features would not be those of training to the last bit
    sizes: list[int] = []
    write_features(job(encode=lambda image: (sizes.append(len(image)), encode(image))[1], batch_size=5), log=quiet)
    assert sizes == [5, 5, 5]


def test_names_come_once(tmp_path: Path, coco_section):
    data = ImageCaptionBuilder("tiny", coco_section).build("train", training=True)
    assert image_names([data.table, data.table]) == [f"{number}.png" for number in range(8)]
