"""File names in annotations: which files a name may reach, and why a file is missing under its name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

SYSTEM_FOLDERS = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run/secrets", "/private/etc")
"""folders without pictures; reading some of these files would hang or change something"""
_MEMORY = "/dev/shm"
"""a folder of /dev into which data sets are copied for speed"""
LINK = "it is a link to "


def is_below(path: str, folder: str) -> bool:
    """Whether a normalised absolute path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def is_system_file(real: str) -> bool:
    """Whether a path, its links followed, is in a folder of the operating system."""
    return not is_below(real, _MEMORY) and any(is_below(real, folder) for folder in SYSTEM_FOLDERS)


class Confinement:
    """A folder that names may not lead out of.

    A name is taken as it is written (`..` goes one folder up, even from a link). So the links that the folder's owner
    made, as Hugging Face snapshots, git-annex and DVC do, are not blamed on the annotations.

    Args:
        root: the folder; it may itself be a symbolic link.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self._written, self._real = os.path.abspath(root), os.path.realpath(root)

    def holds_name(self, name: str) -> bool:
        """Whether a name leads into the folder by its spelling, or to a file that is really in it."""
        path = os.path.join(self._written, name)
        return is_below(os.path.normpath(path), self._written) or is_below(os.path.realpath(path), self._real)

    def holds_file(self, real: str) -> bool:
        """Whether a path, its links followed, is in the folder."""
        return is_below(real, self._real)


def why_absent(path: Path | str) -> str:
    """Why a file is missing, as a clause: it is a link without its content, or has another name; else ""."""
    if os.path.islink(path):
        return (f"{LINK}{os.readlink(path)}, which is not here; fetch the content that links stand for "
                "(git-annex, DVC)")
    folder, _, _ = str(path).rpartition("/")
    for name, what in _spellings(str(path)):
        if name != str(path) and ".." not in name and os.path.isfile(name):
            return f"there is {os.path.relpath(name, folder) if folder else name}: {what}"
    return ""


def _spellings(path: str) -> Iterator[tuple[str, str]]:
    stem, suffix = os.path.splitext(path)
    yield path.replace("\\", "/"), "write / for \\ between folders"
    yield unquote(path, errors="surrogateescape"), "the annotations have it percent-encoded"
    yield "/".join(part.strip() for part in path.split("/")), "the annotations have blanks around it"
    for other in (suffix.lower(), suffix.upper()):
        yield stem + other, "upper and lower case differ"
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, path), "its accents are encoded in another way"
