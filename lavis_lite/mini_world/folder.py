"""A folder that a generator writes: whole or not at all, left alone when right, safe for several processes at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lavis_lite.errors import DataError

MANIFEST = "manifest.json"


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The folder's manifest, `name` and whatever decides its content; None if it is missing or unreadable."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def ensure(root: Path, wanted: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Make sure that a folder holds what is wanted. Of several processes at once, one writes and the others wait.

    Args:
        root: absolute; it must not exist, be empty, or be an earlier folder of the same name in its manifest.
        wanted: the manifest; `name` says what is written.
        fill: writes the content into a folder.

    Raises:
        DataError: the folder holds something else or cannot be written.
    """
    if read_manifest(root) == wanted:
        return
    what = str(wanted["name"]).replace("_", " ")
    with _writing(root, what), FileLock(str(root.parent / f".{root.name}.lock")):
        if read_manifest(root) != wanted:  # another process may have written it while this one waited
            _refuse_foreign(root, str(wanted["name"]), what)
            _swap_in(root, wanted, fill)


def _swap_in(root: Path, wanted: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Fill a temporary sibling, then swap it in; what killed runs left behind goes first (the lock is held)."""
    for leftover in root.parent.glob(f".{root.name}.*.partial"):
        shutil.rmtree(leftover)
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        (partial / "annotations").mkdir(parents=True)
        fill(partial)
        write_json(partial / MANIFEST, wanted)
        if root.exists():
            replaced = root.parent / f".{root.name}.{os.getpid()}.old.partial"
            root.rename(replaced)
            shutil.rmtree(replaced)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """JSON without spaces."""
    path.write_text(json.dumps(value, separators=(",", ":")), encoding="utf-8")


@contextmanager
def _writing(root: Path, what: str) -> Iterator[None]:
    """Turn the system's refusals into an error that says what to do."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        hint = "choose another folder, or make room and give yourself write permission there"
        raise DataError(f"{what}: cannot write {root}: {error.strerror or error}; {hint}") from error


def _refuse_foreign(root: Path, name: str, what: str) -> None:
    """Never replace a folder that this generator did not write."""
    manifest = read_manifest(root)
    ours = manifest is not None and manifest.get("name") == name
    if root.exists() and not ours and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{what}: {root} exists and is not a {what}; choose a new or empty folder")
