"""Explains why something could not be written: a full disk, a limit on files, a missing or read-only folder."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lavis_lite.process import children

MIB = 2**20
_SLACK = MIB
"""bytes that files take besides what they hold"""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def cannot_write(path: Path, error: BaseException, needed: int = 0, what: str = "") -> str:
    """One or two sentences: what could not be written, where, why, and what to do.

    Args:
        path: the file or folder.
        error: of the system, or of a library that wraps one.
        needed: bytes that were to be written; 0: not known.
        what: a noun phrase, such as "the checkpoint of step 200"; by default the path alone.
    """
    subject = f"{what} cannot be written to {path}" if what else f"{path} cannot be written"
    size = f"{needed:,} bytes ({needed / MIB:.1f} MiB) are needed" if needed else ""
    number, place = _number(error), _nearest(path)
    if not path.parent.exists():
        return f"{subject}: the folder {path.parent} is gone; it was removed, or its disk is no longer mounted."
    limit = _file_limit()
    if number == errno.EFBIG or (number is None and limit is not None and limit < needed + _SLACK):
        return (f"{subject}: no file may be larger than {limit:,} bytes here{f', and {size}' if size else ''}. "
                "Raise the limit with `ulimit -f unlimited`." if limit is not None else
                f"{subject}: the file is too large for its file system{f'; {size}' if size else ''}.")
    free = shutil.disk_usage(place).free
    if number in _FULL or (number is None and free < needed + _SLACK):
        return (f"{subject}: the disk is full ({f'{size}, ' if size else ''}{free:,} bytes are free). Free some space "
                f"on the disk of {place}, or choose another folder.")
    if number in _FORBIDDEN:
        return f"{subject}: {_reason(error)}. Check the permissions of {place}, or choose another folder."
    if number == errno.ENOENT and not path.exists():
        return f"{subject}: {path} is gone; it was removed while it was in use."
    if limit_met := next(filter(None, map(children.explain, _chain(error))), None):
        return f"{subject}: {limit_met}"
    return f"{subject}: {_reason(error)}."


def no_room(path: Path, needed: int, what: str) -> str:
    """Two sentences if so many bytes are not free on the disk of `path`, as far as the system says; else none.

    Args:
        path: the file or folder.
        needed: bytes that will be written.
        what: a noun phrase.
    """
    free = shutil.disk_usage(_nearest(path)).free
    return "" if free >= needed else (
        f"{what} will not fit into {path}: {needed:,} bytes ({needed / MIB:.1f} MiB) are needed, {free:,} bytes are "
        f"free. Free some space on the disk of {_nearest(path)}, or choose another folder.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also where a library has wrapped it; None if it has no number."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None:
            return one.errno
        if found := _OS_ERROR.search(str(one)):
            return int(found[1])
    return None


def _reason(error: BaseException) -> str:
    """What the system said, where a library has wrapped it; else the error's own words."""
    said = next((one.strerror for one in _chain(error) if isinstance(one, OSError) and one.strerror), None)
    return str(said or error).strip().rstrip(".") or type(error).__name__


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _file_limit() -> int | None:
    """Bytes that a file may have in this process; None: no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
