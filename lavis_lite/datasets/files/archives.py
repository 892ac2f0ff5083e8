"""Archives of media files: brought here once, unpacked so that nothing leaves its folder, taken up again if stopped.

Each file of an archive appears whole or not at all; those that are there with the right size are not written again.
When all are, a marker in the folder says so, and the archive is not asked for any more.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from lavis_lite import atomic, files
from lavis_lite.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MARKERS = ".unpacked"
"""folder of what says that archives were unpacked"""
_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError)
"""what the readers raise for files that are cut short, damaged, encrypted or packed in an unknown way"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """An archive behind a URL (or a local name) and the folder that its files belong to."""

    url: str
    folder: Path
    sha256: str | None = None
    md5: str | None = None

    @property
    def marker(self) -> Path:
        """The file that says that all of it is in the folder."""
        name = f"{posixpath.basename(self.url)}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}.json"
        return self.folder / MARKERS / name

    def here(self) -> bool:
        """Whether it has been unpacked."""
        return self.marker.exists()

    def bring(self, keep: bool = False, say: Say = print) -> None:
        """Download and unpack what is not here yet; the downloaded archive is then removed, unless it is to be kept.

        Raises:
            DataError: it cannot be fetched, is no archive, is damaged, has members that lead out of the folder or are
                no plain files, or does not fit on the disk.
        """
        if self.here():
            return
        path = files.fetch(self.url, self.sha256, self.md5)
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.marker) + ".lock"):
            if not self.here():
                count = unpack(path, self.folder)
                say(f"{count} files of {self.url} unpacked to {self.folder}")
                atomic.write_text(self.marker, json.dumps({"url": self.url, "files": count}))
        if not keep and files.is_url(self.url) and path == files.target_of(self.url):
            path.unlink(missing_ok=True)


def was_unpacked_into(folder: Path) -> bool:
    """Whether a folder holds what an archive brought."""
    return (folder / MARKERS).is_dir()


@dataclass(frozen=True)
class _Member:
    """A plain file of an archive; `open` gives its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> int:
    """Write the plain files of an archive below a folder; gives how many there are.

    Raises:
        DataError: not an archive of a known kind, damaged, too large for the disk, or with a member that leads out of
            the folder, is a link, or is no file; nothing of such a member is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, real = 0, Path(os.path.realpath(folder))
    try:
        for member in _members(archive, shutil.disk_usage(real).free):
            _write(member, _target(archive, member.name, real))
            count += 1
    except _DAMAGE as fault:
        raise DataError(f"{archive}: cannot be unpacked ({type(fault).__name__}: {fault}); remove it and run again to "
                        "fetch it anew.") from fault
    except OSError as fault:
        raise DataError(f"{archive}: cannot be unpacked to {folder} ({fault.strerror or fault}).") from fault
    return count


def _members(archive: Path, free: int) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive, free)
    elif tarfile.is_tarfile(archive):
        yield from _tar_members(archive)
    else:
        raise DataError(f"{archive}: is neither a zip nor a tar archive; known are {', '.join(SUFFIXES)}.")


def _zip_members(archive: Path, free: int) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        total = sum(info.file_size for info in opened.infolist())
        if total > free:
            raise DataError(f"{archive}: holds {total / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB free.")
        for info in opened.infolist():
            kind = info.external_attr >> 28  # the file type of Unix modes; 0 where it was packed elsewhere
            if info.is_dir():
                continue
            if kind not in (0, 8):
                raise _refused(archive, info.filename, "is a link or no plain file")
            yield _Member(info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as opened:
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
    """Where a member goes.

    Raises:
        DataError: outside of the folder, by its name or through a symbolic link that is there already.
    """
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
