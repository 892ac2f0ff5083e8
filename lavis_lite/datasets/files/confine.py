"""What a name in somebody's annotations may reach: files of one folder, and what the folder's owner linked into it."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_FOLDERS = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run/secrets", "/private/etc")
"""no picture is here; reading some of these files would hang or change something"""
_MEMORY = "/dev/shm"
"""a folder of /dev into which data sets are copied for speed"""


def is_below(path: str, folder: str) -> bool:
    """Whether a normalised absolute path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


class Confinement:
    """A folder that names may not lead out of.

    A name is looked at as it is written (`..` goes one folder up, whatever is a link there), so that links which the
    folder's owner made, as Hugging Face snapshots, git-annex and DVC do, are not the annotations' doing.

    Args:
        root: the folder; it may itself be a symbolic link.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self._written, self._real = os.path.abspath(root), os.path.realpath(root)

    def holds_name(self, name: str) -> bool:
        """Whether a name leads to a place in the folder by its spelling, or to a file that is really in it."""
        path = os.path.join(self._written, name)
        return is_below(os.path.normpath(path), self._written) or is_below(os.path.realpath(path), self._real)

    def holds_file(self, real: str) -> bool:
        """Whether a path whose links were followed is in the folder."""
        return is_below(real, self._real)


def is_system_file(real: str) -> bool:
    """Whether a path whose links were followed is in a folder of the operating system's own."""
    return not is_below(real, _MEMORY) and any(is_below(real, folder) for folder in SYSTEM_FOLDERS)
