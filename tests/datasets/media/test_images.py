"""Image files: decoded as people see them, or refused with a reason, and never from outside the folder."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis_lite.datasets.media.images import BadSample, ImageFolder, load_rgb

RED = (200, 30, 40)


def save(folder: Path, name: str, image: Image.Image, **more: object) -> Path:
    image.save(folder / name, **more)
    return folder / name


def pixel(path: Path, place: tuple[int, int] = (1, 1)) -> tuple[int, ...]:
    image = load_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel(place)


def gradient_16_bit() -> np.ndarray:
    return np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.gif"])
def test_plain_formats(tmp_path, name):
    more = {"lossless": True} if name == "a.webp" else {}
    assert pixel(save(tmp_path, name, Image.new("RGB", (4, 3), RED), **more)) == RED


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    path = save(tmp_path, name, Image.fromarray(gradient_16_bit()))
    got = np.asarray(load_rgb(path))
    expected = np.rint(gradient_16_bit() / 257.0)
    assert np.abs(got[..., 0] - expected).max() <= 1 and (got[..., 0] == got[..., 2]).all()


def test_float_pixels(tmp_path):
    unit = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert pixel(save(tmp_path, "unit.tif", Image.fromarray(unit)), (3, 3)) == (255, 255, 255)
    assert pixel(save(tmp_path, "byte.tif", Image.fromarray(unit * 200)), (3, 3)) == (200, 200, 200)
    for fault in (unit * 1000, unit - 1, unit * np.nan):
        with pytest.raises(BadSample, match="float pixels"):
            load_rgb(save(tmp_path, "odd.tif", Image.fromarray(fault)))


def test_transparency_is_laid_on_white(tmp_path):
    clear = save(tmp_path, "rgba.png", Image.new("RGBA", (4, 4), (*RED, 0)))
    assert pixel(clear) == (255, 255, 255)
    half = save(tmp_path, "la.png", Image.new("LA", (4, 4), (0, 128)))
    assert pixel(half) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert pixel(save(tmp_path, "p.png", palette)) == RED
    assert pixel(save(tmp_path, "p_clear.png", palette, transparency=1)) == (255, 255, 255)
    keyed = save(tmp_path, "rgb_key.png", Image.new("RGB", (4, 4), RED), transparency=RED)
    assert pixel(keyed) == (255, 255, 255)


def test_other_colour_spaces(tmp_path):
    cmyk = save(tmp_path, "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red, green, blue = pixel(cmyk)
    assert red > 240 and green < 15 and blue < 15
    assert pixel(save(tmp_path, "one.png", Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert pixel(save(tmp_path, "grey.png", Image.new("L", (4, 4), 77))) == (77, 77, 77)


@pytest.mark.parametrize(("orientation", "corner"), [
    (1, (0, 0)), (2, (5, 0)), (3, (5, 3)), (4, (0, 3)), (5, (0, 0)), (6, (3, 0)), (7, (3, 5)), (8, (0, 5)),
    (99, (0, 0)),
])
def test_pictures_stand_upright(tmp_path, orientation, corner):
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_rgb(save(tmp_path, "turned.png", image, exif=exif))
    assert upright.size == ((4, 6) if 5 <= orientation <= 8 else (6, 4))
    assert upright.getpixel(corner) == RED


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0))]
    assert pixel(save(tmp_path, "a.png", frames[0], save_all=True, append_images=frames[1:])) == RED


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is not an image of a known format"),
    (b"<html>404</html>", "is not an image of a known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image of a known format"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be decoded|not an image"),
])
def test_files_that_are_no_images(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadSample, match=words) as caught:
        load_rgb(tmp_path / "a.jpg")
    assert caught.value.path == str(tmp_path / "a.jpg")


def test_truncated_files(tmp_path):
    whole = save(tmp_path, "a.jpg", Image.effect_noise((64, 64), 80).convert("RGB")).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.jpg").write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(BadSample):
            load_rgb(tmp_path / "cut.jpg")


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(BadSample, match="there is no such file"):
        load_rgb(tmp_path / "none.jpg")
    with pytest.raises(BadSample, match="is not a regular file"):
        load_rgb(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    with pytest.raises(BadSample, match="is not a regular file"):
        load_rgb(tmp_path / "pipe.jpg")


def test_size_is_checked_before_decoding(tmp_path):
    path = save(tmp_path, "bomb.png", Image.new("1", (9000, 9000)))
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(BadSample, match=r"9000 x 9000 pixels are more than the limit of 64,000,000"):
        load_rgb(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    long = save(tmp_path, "long.png", Image.new("L", (20_000, 1), 9))
    assert load_rgb(long).size == (20_000, 1)
    with pytest.raises(BadSample, match="limit of 100"):
        load_rgb(long, max_pixels=100)


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    outside, inside = (save(folder, "x.png", Image.new("RGB", (2, 2))) for folder in (tmp_path, root))
    (tmp_path / "root2").mkdir()
    save(tmp_path / "root2", "x.png", Image.new("RGB", (2, 2)))
    (root / "in.png").symlink_to(inside)
    for folder in (ImageFolder(root), ImageFolder(root, follow_links=False)):
        for name in ("x.png", "sub/../x.png", "in.png", str(inside)):
            assert folder.load(name).size == (2, 2)
        for name in ("../x.png", str(outside), "sub/../../x.png", "../root2/x.png"):
            with pytest.raises(BadSample, match="leads out of the image folder"):
                folder.load(name)
        with pytest.raises(BadSample):
            folder.load("a\0b")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder as Hugging Face, git-annex and DVC lay it out: its files are links to a store beside it."""
    root, store = tmp_path / "snapshots" / "r1", tmp_path / "blobs"
    (root / "sub").mkdir(parents=True)
    (store / "more").mkdir(parents=True)
    for name, size in (("h0", 2), ("more/h1.png", 3), ("h2", 4)):
        Image.new("RGB", (size, size)).save(store / name, "PNG")
    (root / "0.png").symlink_to("../../blobs/h0")
    (root / "sub" / "2.png").symlink_to(store / "h2")
    (root / "away").symlink_to(store / "more")
    (root / "system").symlink_to("/etc")
    (root / "x.png").symlink_to("/proc/self/status")
    return root


def test_links_of_the_users_own_folder_are_followed(linked):
    folder = ImageFolder(linked)
    names = {"0.png": 2, "sub/2.png": 4, "away/h1.png": 3, "away/../0.png": 2, str(linked / "0.png"): 2}
    for _ in range(2):  # the second time the folders are known
        assert {name: folder.load(name).size[0] for name in names} == names
    for name in ("system/passwd", "x.png"):
        with pytest.raises(BadSample, match="is a symbolic link to .*; links to system files are not followed"):
            folder.load(name)
    for name in ("away/../../h0", "../../blobs/h0", str(linked.parent.parent / "blobs" / "h0")):
        with pytest.raises(BadSample, match="leads out of the image folder"):
            folder.load(name)


def test_links_are_not_followed_where_they_are_not_wanted(linked):
    folder = ImageFolder(linked, follow_links=False)
    Image.new("RGB", (2, 2)).save(linked / "sub" / "plain.png")
    assert folder.load("sub/plain.png").size == (2, 2)  # the folder is known from here on
    for name in ("0.png", "sub/2.png", "away/h1.png", "away/h1.png", "x.png"):
        with pytest.raises(BadSample, match="leads out of the image folder .* set build_info.images.follow_links"):
            folder.load(name)


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    save(tmp_path / "real", "x.png", Image.new("RGB", (2, 2)))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert ImageFolder(tmp_path / "link").load("x.png").size == (2, 2)


def test_bad_samples_travel_between_processes():
    fault = pickle.loads(pickle.dumps(BadSample("a.jpg", "is broken")))
    assert (fault.path, fault.reason, str(fault)) == ("a.jpg", "is broken", "a.jpg: is broken")


# files that break decoders --------------------------------------------------------------------------------------------

REFUSED = {"truncated_image.png", "broken_data_stream.png", "decompression_bomb.gif", "decompression_bomb.ico",
           "timeout-6646305047838720", "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif"}
WITH_OWN_TONES = {"hopper_16bit.pgm", "lab.tif"}
"""Pillow's convert clips the first; the second depends on its colour tables"""


@pytest.mark.shared
def test_odd_images(shared_dir):
    folder = shared_dir / "data" / "odd_images"
    records = json.loads((folder / "manifest.json").read_text())["images"]
    assert len(records) > 40
    for record in records:
        path = folder / record["file"]
        if record["file"] in REFUSED:
            with pytest.raises(BadSample):
                load_rgb(path)
            continue
        image = load_rgb(path)
        assert image.mode == "RGB" and list(image.size) == record["size_after_exif_transpose"], record["file"]
        if not record["has_transparency"] and record["file"] not in WITH_OWN_TONES:
            assert np.abs(np.asarray(image).mean((0, 1)) - record["rgb_mean"]).max() < 1.0, record["file"]


@pytest.mark.shared
def test_the_sixteen_bit_photograph_keeps_its_tones(shared_dir):
    folder = shared_dir / "data" / "odd_images"
    sixteen, eight = (np.asarray(load_rgb(folder / name)).mean() for name in ("hopper_16bit.pgm", "hopper_gray.jpg"))
    assert abs(sixteen - eight) < 3


@pytest.mark.parametrize(("there", "asked", "words"), [
    ("sub/d.png", "sub\\d.png", r"; there is sub/d.png: write / for \\ between folders"),
    ("e f.png", "e%20f.png", "; there is e f.png: the annotations have it percent-encoded"),
    ("c.PNG", "c.png", "; there is c.PNG: upper and lower case differ"),
    ("b.png", " b.png ", "; there is b.png: the annotations have blanks around it"),
    ("\u00fc.png", "u\u0308.png", "; there is \u00fc.png: its accents are encoded in another way"),
    ("b.png", "x.png", "there is no such file$"), ("b.png", "%2e%2e/b.png", "there is no such file$"),
])
def test_a_missing_file_that_is_there_under_another_spelling(tmp_path, there, asked, words):
    (tmp_path / "in" / there).parent.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "in"):
        (folder / there).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / there)
    with pytest.raises(BadSample, match=words):
        ImageFolder(tmp_path / "in").load(asked)


def test_a_link_without_its_content_is_told_as_such(tmp_path):
    (tmp_path / "a.png").symlink_to("../annex/nothing")
    with pytest.raises(BadSample, match="no such file; it is a link to ../annex/nothing, which is not here; fetch"):
        ImageFolder(tmp_path).load("a.png")
