"""Whether a file that is missing under the name in the annotations is there under a name that means the same."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote


def alike(path: Path | str) -> str:
    """"; there is <name>: <what differs>" if there is a file whose name means the same, else ""."""
    folder, _, _ = str(path).rpartition("/")
    for name, what in _spellings(str(path)):
        if name != str(path) and ".." not in name and os.path.isfile(name):
            return f"; there is {os.path.relpath(name, folder) if folder else name}: {what}"
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
