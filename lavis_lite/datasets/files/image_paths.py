"""Paths of images: which files a name in an annotation may reach, and names made out of the columns of a row."""

from __future__ import annotations

import dataclasses
import math
import os
import string
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lavis_lite.datasets.annotations.kinds import WITHIN, describe, file_name
from lavis_lite.datasets.annotations.rows import Field, RowErrors
from lavis_lite.datasets.annotations.tables import RowTable
from lavis_lite.errors import ConfigError

# --- names -----------------------------------------------------------------------------------------------------------
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


# --- present or not --------------------------------------------------------------------------------------------------
def is_embedded(name: str) -> bool:
    """Whether a name stands for a picture within the annotations: a data: address, or a cell of a Parquet file."""
    return name.startswith(WITHIN)


def missing_files(root: Path | str, names: Iterable[str]) -> Iterator[str]:
    """Names without a file below a folder; every folder is listed once."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if not is_embedded(name):
            by_folder[os.path.dirname(name)].append(name)
    for parent, members in by_folder.items():
        present = _listing(Path(root) / parent)
        yield from (name for name in members if os.path.basename(name) not in present)


def _listing(folder: Path) -> frozenset[str]:
    """Names of the files in a folder; none if there is no such folder or it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path))
    except (OSError, ValueError):
        return frozenset()


# --- confined to a folder --------------------------------------------------------------------------------------------
class FileNameIn:
    """`annotations.file_name` for files of one folder: refuses absolute names of files elsewhere, too.

    Symbolic links are checked when a file is opened (`ImageFolder.path`).

    Args:
        root: the folder.
    """

    __name__ = file_name.__name__

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.__qualname__ = f"{file_name.__name__} in {root}"  # tables in the cache are told apart by it
        self._confinement = Confinement(root)

    def __call__(self, value: Any) -> str:
        """The name; a ValueError with a clause if it is not in the folder."""
        name = file_name(value)
        if os.path.isabs(name) and not self._confinement.holds_name(name):
            raise ValueError(f"leads out of its folder {self.root}: {name[:200]!r}")
        return name


def within(fields: Sequence[Field], root: Path | str) -> list[Field]:
    """The fields, with file names confined to a folder."""
    return [dataclasses.replace(field, kind=FileNameIn(root)) if field.kind is file_name else field for field in fields]


def refuse_outside(table: RowTable, root: Path | str) -> None:
    """As `within`, for rows that are in a table already.

    Raises:
        DataError: up to 20 rows whose file is not in the folder, in one message.
    """
    errors, check = RowErrors(), FileNameIn(root)
    for index, row in enumerate(table.skim()):
        try:
            check(row.get("image", "."))
        except ValueError as error:
            errors.add(table.location(index), f"field 'image' {error}")
    errors.stop_if_any()


# --- built from columns ----------------------------------------------------------------------------------------------
class _Formatter(string.Formatter):
    """`str.format`, with one more format: `{column:suffix}` is the ending of a file name or URL, its dot included."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        value = super().get_value(key, args, kwargs)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or (
                isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"field {key!r} is {describe(value)}")
        return value

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "suffix":
            return os.path.splitext(str(value))[1]
        return str(super().format_field(value, format_spec))


class ImagePattern:
    """Columns of a row -> the path of its image.

    Args:
        patterns: such as "{data_subtype}/COCO_{data_subtype}_{image_id:012d}.jpg". Several are tried in order, and
            the first whose file exists is taken, or the first of all.
        exists: whether there is a file of that name; only called if there are several patterns.

    Raises:
        ConfigError: braces that do not match, or no column name in them.
    """

    def __init__(self, patterns: str | Sequence[str], exists: Callable[[str], bool] | None = None) -> None:
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self._exists = exists
        for pattern in self.patterns:
            _check_braces(pattern)

    def fill(self, facts: Mapping[str, Any]) -> str:
        """The path.

        Raises:
            ValueError: a column is missing or does not fit its format; the message is a clause.
        """
        names = [self._filled(pattern, facts) for pattern in self.patterns]
        exists = self._exists if len(names) > 1 else None
        return next((name for name in names if exists is not None and exists(name)), names[0])

    def _filled(self, pattern: str, facts: Mapping[str, Any]) -> str:
        try:
            return file_name(_Formatter().vformat(pattern, (), facts))
        except KeyError as error:
            raise ValueError(f"image_pattern takes {error.args[0]!r}, which the row has not") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"image_pattern {pattern!r} does not fit: {error}") from error


def _check_braces(pattern: str) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ConfigError(f"image_pattern {pattern!r}: {error}.") from error
    for name in names:
        if not name.isidentifier():
            raise ConfigError(f"image_pattern {pattern!r}: {{{name}}} must be the name of a column.")


def with_pattern(section: str, fields: list[Field], patterns: str | Sequence[str] | None, split: str,
                 exists: Callable[[str], bool]) -> list[Field]:
    """The fields of a row, the image by its pattern if there is one.

    Raises:
        ConfigError: an invalid pattern; it names the section.
    """
    if patterns is None:
        return fields
    try:
        pattern = ImagePattern(patterns, exists)
    except ConfigError as error:
        raise ConfigError(f"{section}.{error}") from error
    image = Field("image", file_name, " | ".join(pattern.patterns).replace("{split}", split),
                  made=lambda row: pattern.fill({"split": split, **row}))
    return [image, *(field for field in fields if field.key != "image")]
