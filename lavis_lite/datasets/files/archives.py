"""Archives of media files: fetched once, and unpacked so that nothing leaves its folder, resumably.

Each file of an archive appears whole or not at all; files that exist with the right size are not written again. When
all exist, a marker in the folder says so, and the archive is not needed any more.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import posixpath
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from lavis_lite.datasets.files.locate import MARKERS
from lavis_lite.errors import DataError
from lavis_lite.io import atomic, files

MOST_MEMBERS = 2_000_000
"""of one archive"""
MOST_RATIO = 200
"""bytes unpacked per byte of the archive, from `RATIO_FROM` bytes on; pictures do not shrink, texts do tenfold"""
RATIO_FROM = 64 << 20
_END_OF_ZIP = 65_535 + 22 + 20 + 56
"""bytes of a zip's end in which its records stand, with the longest comment"""
_MOST_DIRECTORY = 512 << 20
_MOST_NAME = 1 << 20
"""bytes of a tar's header for a long name; tarfile reads it into memory as it comes"""
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError,
           ValueError, OverflowError, struct.error)
"""what the readers raise for files that are cut short, damaged, encrypted or packed in an unknown way"""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """An archive behind a URL (or a local name) and the folder that its files belong to."""

    url: str
    folder: Path
    sha256: str | None = None
    md5: str | None = None

    @property
    def marker(self) -> Path:
        """The file that marks the archive as unpacked."""
        name = f"{posixpath.basename(self.url)}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}.json"
        return self.folder / MARKERS / name

    def here(self) -> bool:
        """Whether it has been unpacked."""
        return self.marker.exists()

    def bring(self, keep: bool = False, log: Log = print) -> None:
        """Download and unpack what is not here yet; the downloaded archive is then removed, unless it is to be kept.

        Raises:
            DataError: it cannot be fetched, is not an archive, is damaged, has members that lead out of the folder or
                are not plain files, or does not fit on the disk.
        """
        if self.here():
            return
        path = files.fetch(self.url, self.sha256, self.md5)
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.marker) + ".lock"):
            if not self.here():
                count = unpack(path, self.folder)
                log(f"{count} files of {self.url} unpacked to {self.folder}")
                atomic.write_text(self.marker, json.dumps({"url": self.url, "files": count}))
        if not keep and files.is_url(self.url) and path == files.target_of(self.url):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Member:
    """A plain file of an archive; `open` gives its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> int:
    """Write the plain files of an archive below a folder; gives how many there are.

    Raises:
        DataError: not an archive of a known kind, damaged, too large for the disk, one that unpacks to far more than
            its own size, or with a member that leads out of the folder, is a link, or is not a file; nothing of such a
            member is written.
    """
    files.check_regular(archive)
    folder.mkdir(parents=True, exist_ok=True)
    count, real = 0, Path(os.path.realpath(folder))
    try:
        limits = _Limits(archive, shutil.disk_usage(real).free)
        is_zip = zipfile.is_zipfile(archive)
        if not is_zip and not tarfile.is_tarfile(archive):
            raise DataError(f"{archive}: is neither a zip nor a tar archive; known are {', '.join(SUFFIXES)}.")
        for member in _zip_members(archive, limits) if is_zip else _tar_members(archive):
            limits.add(member.size)
            _write(member, _target(archive, member.name, real))
            count += 1
    except _DAMAGE as error:
        raise DataError(f"{archive}: cannot be unpacked ({type(error).__name__}: {error}); remove it and run again to "
                        "fetch it again.") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked to {folder} ({error.strerror or error}).") from error
    return count


class _Limits:
    """Limits on what an archive unpacks to; `free` are the bytes of the disk that it may take."""

    def __init__(self, archive: Path, free: int) -> None:
        self.archive, self.packed, self.free = archive, archive.stat().st_size, free
        self.members = self.bytes = 0

    def add(self, size: int, members: int = 1) -> None:
        """Count members before they are written; a DataError if they are too many or too large."""
        self.members += members
        self.bytes += size
        if self.members > MOST_MEMBERS:
            raise DataError(f"{self.archive}: has more than {MOST_MEMBERS:,} members; such archives are not unpacked.")
        if self.bytes > self.free:
            raise DataError(f"{self.archive}: holds {self.bytes / 1e9:.1f} GB or more, but the disk has "
                            f"{self.free / 1e9:.1f} GB free.")
        if self.bytes > max(RATIO_FROM, MOST_RATIO * self.packed):
            raise DataError(f"{self.archive}: unpacks to more than {MOST_RATIO} times its {self.packed:,} bytes, as an "
                            "archive does that is meant to fill a disk; such archives are not unpacked.")


class _SmallHeaders(tarfile.TarInfo):
    """Members whose extended headers are of a size that names have."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        special = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                   tarfile.GNUTYPE_LONGLINK)
        if self.type in special and self.size > _MOST_NAME:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


def _zip_members(archive: Path, limits: _Limits) -> Iterator[_Member]:
    _check_directory(archive)
    with zipfile.ZipFile(archive) as opened:
        whole = _Limits(archive, limits.free)  # known before anything is written
        whole.add(sum(info.file_size for info in opened.infolist()), len(opened.infolist()))
        for info in opened.infolist():
            kind = info.external_attr >> 28  # the file type of Unix modes; 0 where it was packed elsewhere
            if info.is_dir():
                continue
            if kind not in (0, 8):
                raise _refused(archive, info.filename, "is a link or no plain file")
            yield _Member(info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]


def _check_directory(archive: Path) -> None:
    """Refuse a zip whose list of members is larger than memory should hold; zipfile reads all of it at once."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _END_OF_ZIP))
        end = file.read()
    at = end.rfind(b"PK\x05\x06")
    count, size = struct.unpack("<HI", end[at + 10:at + 16]) if 0 <= at <= len(end) - 22 else (0, 0)
    if count == 0xFFFF or size == 0xFFFFFFFF:  # the true numbers are in the record of large archives before it
        at = end.rfind(b"PK\x06\x06")
        count, size = struct.unpack("<QQ", end[at + 32:at + 48]) if 0 <= at <= len(end) - 56 else (count, size)
    if count > MOST_MEMBERS or size > _MOST_DIRECTORY:
        raise DataError(f"{archive}: its list of {count:,} members takes {size:,} bytes; such archives are not "
                        "unpacked.")


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, tarinfo=_SmallHeaders) as opened:
        for info in opened:
            if info.isdir():
                continue
            if not info.isfile():
                raise _refused(archive, info.name, "is a link or no plain file")
            yield _Member(info.name, info.size, lambda info=info: opened.extractfile(info))  # type: ignore[misc]
            opened.members.clear()  # type: ignore[attr-defined]  # else it keeps the headers of millions of files


def _refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(f"{archive}: member {name!r} {why}; such archives are not unpacked.")


def _target(archive: Path, name: str, folder: Path) -> Path:
    """The path of a member; a DataError if it leads out of the folder, by its name or through an existing link."""
    clean = name.replace("\\", "/")
    if "\0" in clean or posixpath.isabs(clean) or ".." in clean.split("/") or clean[1:2] == ":":
        raise _refused(archive, name, f"leads out of {folder}")
    target = folder / clean
    if not Path(os.path.realpath(target)).is_relative_to(folder):
        raise _refused(archive, name, f"leads out of {folder}")
    return target


def _write(member: _Member, target: Path) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".part-{os.getpid()}")
    source = member.open()
    try:
        if source is None:
            raise tarfile.ReadError(f"{member.name} has no content")
        with source, part.open("wb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
        if part.stat().st_size != member.size:
            raise EOFError(f"{member.name} is cut short")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
