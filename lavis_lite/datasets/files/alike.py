"""Whether a file that is missing under the name in the annotations is there under a name that means the same."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

LINK = "it is a link to "


def why_absent(path: Path | str) -> str:
    """Why a file is not there, as a clause: it is a link without its content, or has another name; else ""."""
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
