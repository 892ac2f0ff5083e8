"""Members of foreign tars: each is part of a sample, or counted and listed; keys with dots are read, or asked about."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.cli.main import run_command
from lavis_lite.config.schema import FileConfig
from lavis_lite.datasets.annotations.rows import Field, file_name, texts
from lavis_lite.datasets.shards.dataset import open_shards
from lavis_lite.datasets.shards.index import INDEX, ShardIndex
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import DataError
from lavis_lite.io import atomic


def tar(folder: Path, *members: tuple[str, str], name: str = "0.tar") -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as opened:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content.encode())
            opened.addfile(info, io.BytesIO(content.encode()))
    return folder


def says(text: str) -> str:
    return json.dumps({"caption": text})


def rows(folder: Path, **how: Any) -> tuple[dict[str, list[str]], list[str]]:
    """({name of an image: captions}, what was said)."""
    told: list[str] = []
    index_folder(folder, log=told.append, **how)
    opened = open_shards(FileConfig(storage=str(folder)), "x", [Field("image", file_name), Field("caption", texts)])
    found = [opened.table[index] for index in range(len(opened.table))]
    assert all(opened.images.read(row["image"]).decode() == row["image"].rpartition("/")[2] for row in found)
    return {row["image"].removeprefix("0/"): row["caption"] for row in found}, told


def picture(name: str) -> tuple[str, str]:
    return name, name.rpartition("/")[2]


PLAIN = [picture("0001.jpg"), ("0001.json", says("plain"))]


def test_names_with_dots_are_read_by_their_last_ending(tmp_path):
    folder = tar(tmp_path / "s", *PLAIN, picture("photo v1.0 final.jpg"), ("photo v1.0 final.json", says("one")),
                 picture("IMG.2023.png"), picture("IMG.2024.PNG"), ("IMG.2023.txt", "two"),
                 ("IMG.2024.json", says("three")))
    assert rows(folder)[0] == {"0001.jpg": ["plain"], "photo v1.0 final.jpg": ["one"], "IMG.2023.png": ["two"],
                               "IMG.2024.PNG": ["three"]}


def test_parts_of_a_sample_are_not_samples(tmp_path):
    folder = tar(tmp_path / "s", *PLAIN, picture("0001.seg.png"), ("0001.pkl", "x"), ("README", "x"))
    found, told = rows(folder)
    assert found == {"0001.jpg": ["plain"]}
    assert told[1:] == ["not read: .pkl (1, such as 0001.pkl)", "not read: .seg.png (1, such as 0001.seg.png)",
                        "not read: files without an ending (1, such as README)"]


def test_what_may_be_a_sample_or_a_part_is_asked_about(tmp_path, capsys):
    folder = tar(tmp_path / "s", *PLAIN, picture("0001.seg.png"), ("0001.seg.txt", "mask"))
    assert run_command("data", ["index", str(folder)]) == 2
    assert ("0.tar:0001.seg.png: may be of a sample of its own or a part of '0001'; set --dots last or --dots first"
            in capsys.readouterr().err)
    assert run_command("data", ["index", str(folder), "--dots", "first"]) == 0
    assert "1 sample in 1 shard:" in capsys.readouterr().out
    assert run_command("data", ["index", str(folder), "--again", "--dots", "last"]) == 0
    assert "2 samples in 1 shard:" in capsys.readouterr().out


@pytest.mark.parametrize(("members", "told"), [
    ([("IMG.2023.jpg", "x")], "IMG.2023: has no text (.json or .txt) under the name up to the last dot of 'IMG.2023."),
    ([("0002.jpg", "x")], "0002: has no text (.json or .txt)"), ([("0002.json", says("x"))], "0002: has no image"),
    ([("0001.png", "x")], "0001: has 2 images: 0001.jpg, 0001.png"),
    (PLAIN[:1], "0001: has 2 images: 0001.jpg, 0001.jpg"),
    (PLAIN[1:], "0001: has 2 texts of one ending"),
    ([("s.image.jpg", "x"), ("s.text.txt", "x")], "s.image: has no text"),
    ([("2.jpg", "x"), ("2.json", '{"url": 3}')], "2: field 'caption' is missing (it has: image, url)"),
    ([("2.jpg", "x"), ("2.json", '{"caption": "a", "caption": "b"}')], "2: its text cannot be read (key 'caption' "),
])
def test_what_is_no_sample_stops_the_index_and_is_listed(tmp_path, members, told):
    folder = tar(tmp_path / "s", *PLAIN, *members)
    with pytest.raises(DataError) as caught:
        index_folder(folder, log=lambda text: None)
    assert told in str(caught.value) and not (folder / INDEX).exists()


def test_odd_nesting(tmp_path):
    long = "x" * 200
    folder = tar(tmp_path / "s", picture("./a/0.jpg"), ("a/0.txt", "one"), ("._0.jpg", "mac"),
                 ("__MACOSX/a/._0.txt", "mac"),
                 picture(f"v1.0/{long}.jpg"), (f"v1.0/{long}.txt", "\ufefftwo"))
    found, told = rows(folder)
    assert found == {"a/0.jpg": ["one"], f"v1.0/{long}.jpg": ["two"]}
    assert told[1:] == ["not read: hidden files (2, such as ._0.jpg)"]


def test_an_index_of_nothing_is_an_error(tmp_path, capsys):
    folder = tar(tmp_path / "s", ("README", "x"))
    assert run_command("data", ["index", str(folder)]) == 2
    assert "0.tar: holds no image and no text" in capsys.readouterr().err
    assert run_command("data", ["index", str(folder), "--skip-bad"]) == 2
    assert "the tars hold no samples" in capsys.readouterr().err and not (folder / INDEX).exists()


def test_tars_that_are_not_read_are_named(tmp_path):
    folder = tar(tmp_path / "s", *PLAIN)
    tar(folder / "deeper", *PLAIN, name="1.tar")
    (folder / "2.tar.gz").write_bytes(b"x")
    told = rows(folder)[1]
    assert told[1:] == ["not read: compressed archives (1, such as 2.tar.gz); unpack them to .tar files",
                        "not read: tars in folders below (1, such as deeper/1.tar); index each folder separately"]
    whole = (folder / "0.tar").read_bytes()
    for content, words in ((gzip.compress(whole), "it is compressed; unpack it with gunzip"),
                           (whole + whole, "continues after its end, after member 0001.json, as if two tars were")):
        (folder / "0.tar").write_bytes(content)
        with pytest.raises(DataError, match=words):
            index_folder(folder, log=lambda text: None)


def test_fields_that_no_sample_has_are_refused(tmp_path):
    with pytest.raises(DataError, match="no sample's JSON has the field 'urll' that --keep names"):
        index_folder(tar(tmp_path / "s", *PLAIN), ["urll"], log=lambda text: None)


@pytest.mark.parametrize("name", ["../0.tar", "/etc/0.tar", "a\\b.tar", ".."])
def test_an_index_names_files_of_its_folder_only(tmp_path, name):
    folder = tar(tmp_path / "s", *PLAIN)
    index_folder(folder, log=lambda text: None)
    content = atomic.read_sealed(folder / INDEX)
    content["shards"][0]["name"] = name
    (folder / INDEX).write_text(atomic.seal(content))
    with pytest.raises(DataError, match="is not the name of a file in this folder"):
        ShardIndex(folder)


def test_a_text_beside_another_caption_is_counted(tmp_path):
    folder = tar(tmp_path / "s", *PLAIN, ("0001.txt", "plain "), picture("0002.jpg"), ("0002.txt", "written over"),
                 ("0002.json", says("first")))
    found, told = rows(folder)
    assert found == {"0001.jpg": ["plain"], "0002.jpg": ["first"]}
    assert told[1:] == ["not read: texts in .txt other than the caption in the .json (1, such as 0002.jpg)"]
