"""S2: nothing of an archive lands outside of its folder, and no archive fills disk or memory.

The shapes of single members are in tests/datasets/files/test_archives.py; here are many at once. `--long`: 500
archives, and memory below 200 MB for bombs and for 100,000 members.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_lite.datasets.files.archives import unpack
from lavis_lite.errors import DataError

FEW, MANY = 60, 500
NAMES = ["../x", "/x", "//x", "a/../../x", "..\\x", "C:\\x", "c:x", "a/..", "..", ".", "", "./", "a/./b", "a//b",
         "~/x", "a\nb",
         "a" * 300, "a/" * 400 + "x", "ａ/．．/x", "..%2fx", "-rf", "x\u202ey", "link/x", "link", "hard", "con", " ",
         "a/b/c.png"]
KINDS = [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
         tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE, b"Z"]
TARGETS = ["../..", "/etc/passwd", "..", "outside", "/", "x", "link"]
SUFFIXES = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def hostile_tar(path: Path, rng: random.Random, mode: str) -> None:
    with tarfile.open(path, mode, format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for _ in range(rng.randrange(1, 5)):
            member = tarfile.TarInfo(rng.choice(NAMES))
            member.type = rng.choice(KINDS)
            content = b"evil" if member.type in (tarfile.REGTYPE, tarfile.CONTTYPE, b"Z") else b""
            member.size, member.linkname = len(content), rng.choice(TARGETS)
            archive.addfile(member, io.BytesIO(content))


def hostile_zip(path: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for _ in range(rng.randrange(1, 5)):
            member = zipfile.ZipInfo(rng.choice(NAMES) or "x")
            member.external_attr = rng.choice((0, 0o100644, 0o120777, 0o060644, 0o010644)) << 16
            archive.writestr(member, rng.choice(TARGETS))


def damaged(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 9)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[:rng.randrange(1, len(content) + 1)] if rng.random() < 0.3 else content)


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_s2_nothing_lands_outside(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng, refused = random.Random("archives"), 0
    count = MANY if request.config.getoption("--long") else FEW
    for number in range(count):
        place = tmp_path / str(number) / "a" / "b"
        place.mkdir(parents=True)
        (tmp_path / "archive").mkdir(exist_ok=True)
        suffix = rng.choice([*SUFFIXES, ".zip"])
        path = tmp_path / "archive" / f"{number}{suffix}"
        if suffix == ".zip":
            hostile_zip(path, rng)
        else:
            hostile_tar(path, rng, SUFFIXES[suffix])
        if rng.random() < 0.4:
            damaged(path, rng)
        if rng.random() < 0.3:
            (place / "link").symlink_to(tmp_path / str(number))
        try:
            unpack(path, place)
        except DataError as error:
            refused += str(path) in str(error)
        outside = [file for file in (tmp_path / str(number)).rglob("*") if not file.is_relative_to(place)
                   and file not in place.parents]
        assert outside == [], f"{path}: {outside}"
        assert not [file for file in place.rglob("*") if file.is_symlink() and file.name != "link"]
        path.unlink()
    assert not Path("/x").exists() and count // 3 < refused <= count


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.bin", bytes(32 << 20))


def tar_bomb(path: Path) -> None:
    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = 32 << 20
            archive.addfile(member, io.BytesIO(bytes(member.size)))


def header_bomb(path: Path) -> None:
    """A name of 24 MiB, which tarfile would read into memory."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 24 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
        archive.addfile(tarfile.TarInfo("x"))


BOMBS: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.zip", zip_bomb, "more than 200 times"), ("a.tar.gz", tar_bomb, "more than 200 times"),
    ("b.tar.gz", header_bomb, "a header of 25,165,824 bytes")]


@pytest.mark.parametrize(("name", "make", "words"), BOMBS, ids=[make.__name__ for _, make, _ in BOMBS])
def test_s2_bombs_are_refused(tmp_path: Path, name: str, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=words):
        unpack(tmp_path / name, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) <= 64 << 20


def test_s2_more_members_than_any_data_set_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_lite.datasets.files.archives.MOST_MEMBERS", 5)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(6):
            archive.writestr(str(number), "")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(6):
            tar.addfile(tarfile.TarInfo(str(number)))
    for name, words in (("a.zip", "list of 6 members"), ("a.tar", "more than 5 members")):
        with pytest.raises(DataError, match=words):
            unpack(tmp_path / name, tmp_path / "out")


CHILD = """
import resource, sys
from pathlib import Path
from lavis_lite.datasets.files.archives import unpack
from lavis_lite.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except DataError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["zip_bomb", "tar_bomb", "header_bomb", "zip", "tar"])
def test_s2_memory_stays_below_200_megabytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.zip" if "zip" in kind else "a.tar.gz")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(100_000):
                archive.writestr(f"{number // 1000}/{number}.txt", "")
    elif kind == "tar":
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for number in range(100_000):
                tar.addfile(tarfile.TarInfo(f"{number // 1000}/{number}.txt"))
    else:
        {"zip_bomb": zip_bomb, "tar_bomb": tar_bomb, "header_bomb": header_bomb}[kind](path)
    child = subprocess.run([sys.executable, "-c", CHILD, str(path), str(tmp_path / "out")], capture_output=True,
                           text=True, check=True)
    assert int(child.stdout) < 200
