"""Files that are either the old ones or the new ones, also after a crash, and JSON files that carry their own hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


# --- files with a hash of their content -------------------------------------------------------------------------------
SEAL = "seal"


def seal(facts: Mapping[str, Any]) -> str:
    """JSON text in one fixed form, with the sha256 of the other facts under "seal"."""
    body = redaction.mask_all({key: value for key, value in facts.items() if key != SEAL})
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, SEAL: digest}, sort_keys=True, indent=1) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts of a sealed file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, is not sealed, or was altered.
    """
    content = path.read_bytes()
    try:
        facts = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(facts, dict):
        raise ValueError("it is not a JSON object")
    if SEAL not in facts:
        raise ValueError("it has no seal: an earlier version of this package, or another program, wrote it")
    if seal(facts).encode() != content:
        raise ValueError("its content does not match its seal, so it was altered or damaged")
    return facts


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
