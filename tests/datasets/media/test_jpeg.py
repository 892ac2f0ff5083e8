"""The direct way from JPEG bytes to pixels gives what Pillow gives, and refuses what Pillow refuses."""

from __future__ import annotations

import io
import json
import random
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_lite.bench.twins.images import PlainTrainView, RowsFirstView
from lavis_lite.datasets.media import images
from lavis_lite.datasets.media.images import BadSample, ImageFolder, decode_pixels, load_pixels, load_rgb
from lavis_lite.processors.image import (
    STD,
    Blip2ImageTrain,
    BlipImageEval,
    BlipImageTrain,
    ClipImageEval,
    ClipImageTrain,
)

needs_simplejpeg = pytest.mark.skipif(images.simplejpeg is None, reason="simplejpeg is not installed")


def picture(width: int = 61, height: int = 45) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 5, (x * y) % 256], -1).astype(np.uint8))


def encoded(image: Image.Image, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 92, **more})
    return stream.getvalue()


def by_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(images, "simplejpeg", None)
        return decode_pixels(data, "a.jpg")


@pytest.fixture
def decoded_directly(monkeypatch):
    """How often simplejpeg decoded."""
    calls, real = [], images.simplejpeg.decode_jpeg
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", lambda *arguments: calls.append(1) or real(*arguments))
    return calls


@needs_simplejpeg
@pytest.mark.parametrize("more", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True},
                                  {"quality": 30}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(mode, more, monkeypatch, decoded_directly):
    data = encoded(picture().convert(mode), **more)
    direct = decode_pixels(data, "a.jpg")
    assert direct.dtype == np.uint8 and direct.shape == (45, 61, 3) and direct.flags.writeable and decoded_directly
    assert np.array_equal(direct, by_pillow(data, monkeypatch))


@needs_simplejpeg
@pytest.mark.parametrize("orientation", range(10))
def test_all_orientations(orientation, monkeypatch, decoded_directly):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), exif=exif)
    assert np.array_equal(decode_pixels(data, "a.jpg"), by_pillow(data, monkeypatch))
    assert decoded_directly


@needs_simplejpeg
def test_the_header_is_opened_by_pillow_only_where_it_has_notes(monkeypatch):
    opened, real = [], Image.open
    monkeypatch.setattr(images.Image, "open", lambda *arguments, **more: opened.append(1) or real(*arguments, **more))
    plain = encoded(picture())
    padded = plain[:2] + b"\xff\xff\xff" + plain[2:]
    for data in (plain, padded):
        assert decode_pixels(data, "a.jpg").shape == (45, 61, 3) and not opened
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_pixels(encoded(picture(), exif=exif), "a.jpg").shape == (61, 45, 3) and len(opened) == 1
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    assert decode_pixels(encoded(picture(), xmp=xmp), "a.jpg").shape == (61, 45, 3) and len(opened) == 2


@needs_simplejpeg
def test_cmyk_is_left_to_pillow(monkeypatch, decoded_directly):
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    red, green, blue = decode_pixels(data, "a.jpg")[4, 4]
    assert red > 240 and green < 15 and blue < 15 and not decoded_directly


def with_adobe_transform(data: bytes) -> bytes:
    """The same JPEG with an Adobe marker that says its values are inverted, as Photoshop writes CMYK."""
    marker = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)
    return data[:2] + b"\xff\xee" + struct.pack(">H", 2 + len(marker)) + marker + data[2:]


def test_adobes_inverted_cmyk():
    # Pillow writes the marker itself; without it the same bytes mean the opposite colours
    plain = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    start = plain.index(b"\xff\xee")
    bare = plain[:start] + plain[start + 2 + struct.unpack(">H", plain[start + 2:start + 4])[0]:]
    for data in (plain, with_adobe_transform(bare)):
        red, green, blue = decode_pixels(data, "a.jpg")[4, 4]
        assert red > 240 and green < 15 and blue < 15


@needs_simplejpeg
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_files_are_refused(share):
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"))
    with pytest.raises(BadSample, match="a.jpg"):
        decode_pixels(data[:int(len(data) * share)], "a.jpg")


@needs_simplejpeg
def test_what_pillow_forgives_is_forgiven(monkeypatch):
    data = encoded(picture()) + b"\0" * 1000
    assert np.array_equal(decode_pixels(data, "a.jpg"), by_pillow(data, monkeypatch))
    body = bytearray(encoded(picture()))
    body[len(body) // 2:len(body) // 2 + 3] = b"\x12\x34\x56"  # wrong tones in some blocks, a warning of the decoder
    assert np.array_equal(decode_pixels(bytes(body), "a.jpg"), by_pillow(bytes(body), monkeypatch))


@needs_simplejpeg
@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_lost_bytes_in_its_middle_is_refused(progressive, tmp_path, monkeypatch):
    """Pillow alone shows the rest of it grey, or as noise, without a word."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, progressive=progressive)
    broken = data[:len(data) // 2] + data[-2:]
    assert by_pillow(broken, monkeypatch).shape == (64, 64, 3)
    (tmp_path / "a.jpg").write_bytes(broken)
    for read in (ImageFolder(tmp_path).load, lambda name: load_rgb(tmp_path / name)):
        with pytest.raises(BadSample, match=r"a\.jpg: cannot be decoded .*part of the picture is lost: Corrupt JPEG"):
            read("a.jpg")


def test_bombs_are_refused_from_the_header(decoded_directly):
    data = bytearray(encoded(picture()))
    place = data.index(b"\xff\xc0") + 5
    data[place:place + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(BadSample, match="60000 x 60000 pixels|absurd number"):
        decode_pixels(bytes(data), "a.jpg")
    assert not decoded_directly


def test_huge_files_are_not_read_whole(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()) + b"\0" * 100_000)
    monkeypatch.setattr(images, "MOST_BYTES", 100_000)
    monkeypatch.setattr(images, "decode_pixels", lambda *arguments: pytest.fail("was read"))
    assert load_pixels(tmp_path / "a.jpg").shape == (45, 61, 3)


def test_unreadable_files_say_so(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))

    def refuse(*arguments, **more):
        raise PermissionError(13, "no")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadSample, match="permission denied"):
        load_pixels(tmp_path / "a.jpg")


def test_every_other_format_goes_by_pillow(tmp_path, monkeypatch):
    sixteen = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(sixteen).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "b.png")
    encoded_as_png = tmp_path / "c.png"
    encoded_as_png.write_bytes(encoded(picture()))  # a JPEG under a wrong name
    for name in ("a.png", "b.png", "c.png"):
        path = tmp_path / name
        pixels = load_pixels(path)
        assert np.array_equal(pixels, by_pillow(path.read_bytes(), monkeypatch)) and pixels.flags.writeable


@pytest.mark.parametrize("cls", [BlipImageTrain, Blip2ImageTrain, ClipImageTrain, BlipImageEval, ClipImageEval])
def test_views_of_pixels_and_of_pil_images_are_equal(cls, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(160, 120)))
    folder, processor = ImageFolder(tmp_path), cls(40)
    image = Image.fromarray(by_pillow((tmp_path / "a.jpg").read_bytes(), monkeypatch))
    for seed in range(4):
        plain = processor(image, random.Random(seed))
        assert torch.equal(folder.view("a.jpg", processor, random.Random(seed)), plain)


def test_processors_of_others_get_pil_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))
    assert ImageFolder(tmp_path).view("a.jpg", lambda image, rng: image.size) == (61, 45)


@pytest.mark.parametrize(("cls", "most"), [(RowsFirstView, 0.0), (PlainTrainView, 0.02)])
def test_views_are_the_plain_pipelines_within_one_grey_level(cls, most, tmp_path):
    """The twin that benchmarks compare with: PIL and torchvision, given the same random numbers.

    Pillow 13 takes the other order of passes for some shapes, which shows where a pass runs into black or white.
    """
    folder, processor, plain = ImageFolder(tmp_path), Blip2ImageTrain(64), cls(64)
    levels = torch.tensor(STD).view(3, 1, 1) * 255
    for seed, size in enumerate([(160, 120), (90, 200), (64, 64), (300, 200)]):
        (tmp_path / "a.jpg").write_bytes(encoded(picture(*size)))
        view = folder.view("a.jpg", processor, random.Random(seed))
        apart = ((view - plain(tmp_path / "a.jpg", random.Random(seed))) * levels).abs()
        assert (apart > 1.01).float().mean() <= most


@pytest.mark.shared
def test_odd_images_are_pillows_or_refused(shared_dir, monkeypatch):
    folder = shared_dir / "data" / "odd_images"
    for record in json.loads((folder / "manifest.json").read_text())["images"]:
        path = folder / record["file"]
        try:
            plain = by_pillow(path.read_bytes(), monkeypatch)
        except BadSample:
            with pytest.raises(BadSample):
                load_pixels(path)
            continue
        difference = np.abs(load_pixels(path).astype(int) - plain).max()
        assert difference <= 1, record["file"]


@needs_simplejpeg
@pytest.mark.shared
def test_photographs_are_pillows(shared_dir, decoded_directly, monkeypatch):
    paths = sorted((shared_dir / "data" / "coco_photos" / "images").iterdir())[:12]
    for path in paths:
        assert np.array_equal(load_pixels(path), by_pillow(path.read_bytes(), monkeypatch))
    assert len(decoded_directly) == len(paths)
