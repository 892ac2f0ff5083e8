"""Archives come from a local server, are unpacked once and safely; data list and data prepare say what is where."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lavis_lite.cli.main import run_command
from lavis_lite.datasets.files.archives import Archive, unpack
from lavis_lite.errors import DataError


class Site:
    """A folder behind http://127.0.0.1, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        folder.mkdir()
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                site.asked.append(self.path)
                super().do_GET()

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Site(tmp_path / "site")
    threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6)).save(stream, "PNG")
    return stream.getvalue()


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """(name, type, content or link) each."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = content.decode() if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def test_zip_and_tar_are_unpacked(tmp_path):
    make_zip(tmp_path / "a.zip", {"x/1.txt": b"one", "x/": b"", "2.txt": b"two"})
    make_tar(tmp_path / "b.tgz", ("d", tarfile.DIRTYPE, b""), ("d/3.txt", tarfile.REGTYPE, b"three"),
             *((f"d/{n}.txt", tarfile.REGTYPE, b"%d" % n) for n in range(4, 9)))
    out = tmp_path / "out"
    assert unpack(tmp_path / "a.zip", out) == 2 and unpack(tmp_path / "b.tgz", out) == 6
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == {
        "x/1.txt": b"one", "2.txt": b"two", "d/3.txt": b"three", **{f"d/{n}.txt": b"%d" % n for n in range(4, 9)}}


def test_what_was_written_is_kept_and_half_files_are_written_again(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"1.txt": b"one", "2.txt": b"two"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.txt").write_bytes(b"ONE")
    (out / "2.txt").write_bytes(b"t")
    assert unpack(archive, out) == 2
    assert (out / "1.txt").read_bytes() == b"ONE" and (out / "2.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "/evil", "..\\evil", "C:\\evil", "C:/evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_leaves_the_folder(name, kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    made = (make_zip(path, {name: b"x"}) if kind == "zip" else make_tar(path, (name, tarfile.REGTYPE, b"x")))
    with pytest.raises(DataError, match=r"member '.*evil' leads out of"):
        unpack(made, tmp_path / "a" / "out")
    assert not [path for path in tmp_path.rglob("*evil*")] and not Path("/evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    made = make_tar(tmp_path / "a.tar", ("x", kind, b"/etc/passwd"), ("x/y", tarfile.REGTYPE, b"evil"))
    with pytest.raises(DataError, match="member 'x' is a link or no plain file"):
        unpack(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_that_is_there_already_leads_nowhere(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads out of"):
        unpack(make_zip(tmp_path / "a.zip", {"x/evil": b""}), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_zip_of_a_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_damaged_archives_are_named(damage, tmp_path):
    path = make_tar(tmp_path / "a.tgz", ("x", tarfile.REGTYPE, bytes(range(256)) * 400))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        path = make_zip(tmp_path / "a.zip", {"x": bytes(range(256)) * 400})
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
    path.write_bytes(b"no archive" if damage == "text" else content[:len(content) // 2] if damage == "cut" else content)
    with pytest.raises(DataError, match="is neither a zip nor" if damage == "text" else "cannot be unpacked"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()


def test_a_bomb_is_refused_from_its_list(tmp_path, monkeypatch):
    import lavis_lite.datasets.files.archives as archives

    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(DataError, match="but the disk has"):
        unpack(make_zip(tmp_path / "a.zip", {"x": b"sixsix"}), tmp_path / "out")


def test_an_archive_comes_once(site, tmp_path, capsys):
    made = make_zip(site.folder / "a.zip", {"x.txt": b"one"})
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    archive = Archive(f"{site.url}/a.zip", tmp_path / "out", sha256=digest)
    archive.bring()
    assert archive.here() and (tmp_path / "out" / "x.txt").read_bytes() == b"one" and len(site.asked) == 1
    assert not list((tmp_path / "cache").rglob("a.zip"))  # not kept
    archive.bring()
    assert len(site.asked) == 1
    wrong = Archive(f"{site.url}/a.zip", tmp_path / "other", sha256="0" * 64)
    with pytest.raises(DataError, match="is not the expected one"):
        wrong.bring()
    assert not (tmp_path / "other" / "x.txt").exists()


def recipe(tmp_path: Path, site: Site) -> Path:
    """A data set behind the server: annotations, and pictures in an archive."""
    make_zip(site.folder / "pictures.zip", {f"p/{n}.png": picture() for n in range(3)})
    (site.folder / "a.json").write_text(json.dumps([{"image": f"p/{n}.png", "caption": "a dog"} for n in range(3)]))
    path = tmp_path / "run.yaml"
    path.write_text(f"""
datasets:
  dogs:
    builder: image_caption
    build_info:
      annotations:
        train: {{url: {site.url}/a.json, storage: dogs/a.json}}
      images: {{storage: dogs/images, url: {site.url}/pictures.zip}}
""")
    return path


def test_prepare_brings_all_and_check_finds_it_healthy(site, tmp_path, capsys):
    cfg = recipe(tmp_path, site)
    assert run_command("data", ["prepare", "dogs", "--cfg-path", str(cfg)]) == 0
    assert "3 files of" in capsys.readouterr().out
    assert sorted(site.asked) == ["/a.json", "/pictures.zip"]
    assert run_command("data", ["check", "dogs", "--cfg-path", str(cfg)]) == 0
    assert "3 images opened" in capsys.readouterr().out
    assert run_command("data", ["prepare", "dogs", "--cfg-path", str(cfg)]) == 0 and len(site.asked) == 2


def test_prepare_lists_all_that_failed(site, tmp_path, capsys):
    cfg = recipe(tmp_path, site)
    (site.folder / "a.json").unlink()
    (site.folder / "pictures.zip").write_bytes(b"no")
    assert run_command("data", ["prepare", "dogs", "--cfg-path", str(cfg)]) == 2
    shown = capsys.readouterr().err
    assert "1. could not fetch" in shown and "2. datasets.dogs.build_info.images.url:" in shown
    assert "neither a zip nor a tar" in shown


def test_what_somebody_has_to_do_is_said_with_the_place(site, tmp_path, capsys):
    cfg = recipe(tmp_path, site)
    text = cfg.read_text().replace(f", url: {site.url}/pictures.zip", "")
    cfg.write_text(text + "    how_to_get: Ask the author for the dogs.\n")
    assert run_command("data", ["prepare", "dogs", "--cfg-path", str(cfg)]) == 2
    shown = capsys.readouterr().err
    assert f"there is no folder {tmp_path}/cache/dogs/images. Ask the author for the dogs." in shown


def test_list_names_data_sets_and_what_is_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path))
    assert run_command("data", ["list", "*_caption", "--json"]) == 0
    found = {(entry["name"], entry["type"]): entry for entry in json.loads(capsys.readouterr().out)}
    assert found["coco_caption", "default"]["splits"] == ["train", "val", "test"]
    assert found["coco_caption", "default"]["state"]["archives"] is True
    assert "113,287" in found["coco_caption", "default"]["what"]
    assert found["coco_caption", "default"]["train_size"] == 566_747
    assert found["mini_world_caption", "default"]["on_this_machine"] == "generated on first use"
    for name in ("coco/annotations/coco_karpathy_train.json", "coco/images/train2014/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    assert run_command("data", ["list", "coco_cap*"]) == 0
    assert "no annotations of val, test (data prepare brings them)\n" in capsys.readouterr().out
    assert run_command("data", ["list", "cocoo"]) == 2
    assert "did you mean" in capsys.readouterr().err
