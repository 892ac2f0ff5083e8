"""Files that are either the old ones or the new ones, also after a crash or on a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lavis_lite import redaction


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (names, renames) durable. Some file systems cannot; then the rename alone must do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: no fsync of folders here
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's bytes durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def temporary_name(path: Path) -> Path:
    """A hidden name beside a path, which `remove_strays` finds if the process is killed."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Context manager: errors of the system that name no file name this one; `write` and `fsync` know no names."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name for a new file, which replaces `path` in one go if the block ends without an error.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    temporary = temporary_name(path)
    try:
        with _named(path):
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content in one go. Secrets in the text are masked.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    with replaced(path) as temporary:
        temporary.write_text(redaction.mask(text), encoding="utf-8")


def remove_strays(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder. No other process may be writing there."""
    for stray in Path(folder).glob(".tmp-*"):
        if stray.is_dir():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name for a new file or folder, which is renamed to `path` if the block ends without an error.

    Raises:
        FileExistsError: there is something already.
        OSError: it could not be written; then nothing is left.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                sync_file(file)
        os.rename(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
