"""The path layer: local names are resolved, files elsewhere are fetched.

Local names resolve against the working folder, then the cache folder. URLs are fetched once, whole or not at all, and
checked against their hash. `hf://owner/name/path` is a file of a Hugging Face repository. Other schemes (`s3://` ...)
work once a handler for iopath's PathManager is registered; without one they are an error, because iopath alone would
take them for local names.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from lavis_lite.errors import DataError, did_you_mean, shown
from lavis_lite.io.download import Hashes, download, is_this_machine, split

if TYPE_CHECKING:
    from iopath.common.file_io import PathHandler, PathManager

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
"""of two characters at least: one is a Windows drive"""
_WEB = ("https", "http")
HUB = "hf"
"""scheme of files of the Hugging Face hub, see `io.hub`"""
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""bytes, on the file systems of Linux"""


def cache_root() -> Path:
    """Folder of everything that is fetched or generated: LAVIS_LITE_CACHE, else ~/.cache/lavis_lite."""
    named = os.environ.get("LAVIS_LITE_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "lavis_lite"


def resolve(path: Path | str) -> Path:
    """Absolute path of a local name: as it is if absolute; in the working folder if it exists there; else in the cache.

    Nothing is checked for the last: it is where the file belongs when it is nowhere.

    Raises:
        DataError: no file can have this name.
    """
    path = _home_filled_in(path)
    if problem := name_problem(path):
        raise DataError(f"{shown(str(path), 1000)}: {problem}.")
    if path.is_absolute():
        return path
    here = Path.cwd() / path
    return here if here.exists() else cache_root() / path


def check_regular(path: Path) -> None:
    """Check that a path is not a pipe, socket or device: reading one may never end.

    Raises:
        DataError: it is one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: is not a regular file (a pipe or a device); give a file.")


def why_not_writable(path: Path, folder: bool = False) -> str:
    """Why no file (with `folder`: no folder) can be written at a path; "" if it can. Tries a temporary file there."""
    nearest = path.absolute()
    try:
        if not folder and nearest.exists():
            if not nearest.is_file():
                return f"{nearest} is {'a folder' if nearest.is_dir() else 'not a regular file'}"
            if not os.access(nearest, os.W_OK):
                return "it is read-only"
            nearest = nearest.parent
        while not os.path.lexists(nearest) and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            return f"{nearest} is {'a file' if nearest.exists() else 'a symbolic link that leads nowhere'}"
        with tempfile.TemporaryFile(dir=nearest):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def name_problem(path: Path) -> str:
    """Why no file can have this name, as a clause; "" when one can."""
    if "\0" in str(path):
        return "no file name can have a null character"
    encoded = os.fsencode(path)
    if len(encoded) >= LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/")):
        return f"no name of a file or folder can have more than {LONGEST_NAME} bytes, no path more than {LONGEST_PATH}"
    return ""


def _home_filled_in(path: Path | str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # "~name" of nobody
        raise DataError(f"{shown(str(path), 1000)}: {error}") from error


def offline() -> bool:
    """Whether LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    return any(os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")
               for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"))


def is_url(name: str) -> bool:
    """Whether a name has a scheme other than file (a Windows drive letter is not a scheme)."""
    scheme, mark, _ = name.partition("://")
    return bool(mark) and _SCHEME.fullmatch(scheme) is not None and scheme.lower() != "file"


def fetch_command(url: str, target: Path) -> str:
    """A shell command that does by hand what `fetch` does."""
    return f"curl -L --fail --create-dirs -o {shlex.quote(str(target))} {shlex.quote(url)}"


def target_of(url: str) -> Path:
    """Where `fetch` puts a URL that has no place of its own."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_root() / "downloads" / digest / _local_name(url)


def _local_name(url: str) -> str:
    """The last part of a URL's path, as a file can be called; "file" where it has none."""
    name = unquote(split(url).path).replace("\0", "").rpartition("/")[2]
    return os.fsdecode(os.fsencode(name)[-200:]) if name not in ("", ".", "..") else "file"


def cached(url: str) -> Path | None:
    """Where `fetch` has already put a URL, or None. Nothing is downloaded."""
    if url.startswith(f"{HUB}://"):
        from lavis_lite.io import hub  # few names are there

        return hub.cached(hub.HubName.parse(url))
    path = target_of(url) if is_url(url) else resolve(unquote(split(url).path))
    return path if path.exists() else None


def fetch(url: str, sha256: str | None = None, md5: str | None = None, to: Path | None = None) -> Path:
    """A local path for a URL or a local name, downloading once.

    The file appears whole or not at all; a broken transfer continues if there is a hash to check the
    whole against. Several processes may ask at once: one downloads, the others wait.

    Args:
        url: https://, http:// (only with a hash, or from this machine), hf:// (see `hub`), file://, a local name, or a
            registered scheme.
        sha256, md5: expected hash in hex.
        to: target path; by default under the cache folder. Files from hf:// stay in the hub's cache.

    Raises:
        DataError: unknown scheme, not there, network refused or failing, wrong hash; with the command to do it by hand.
    """
    hashes = Hashes(sha256, md5)
    scheme = split(url).scheme if is_url(url) else "file"
    if scheme == "file":
        return _local(url, hashes)
    if scheme == HUB:
        from lavis_lite.io import hub  # as above

        return _checked(url, hub.fetch(hub.HubName.parse(url), offline()), hashes)
    if scheme not in _WEB:
        return _foreign(url, scheme, hashes)
    return _fetch_web(url, to or target_of(url), hashes)


def _fetch_web(url: str, target: Path, hashes: Hashes) -> Path:
    if target.exists() and hashes.problem(target) is None:
        return target
    help_ = f"To fetch it by hand: {fetch_command(url, target)}"
    if offline():
        raise DataError(f"{target} is not here, and LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids to fetch {url}. "
                        f"{help_}")
    if split(url).scheme == "http" and not (hashes or is_this_machine(url)):
        raise DataError(f"{url}: http without a hash could deliver anything; use https or state its sha256. {help_}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not target.exists() or hashes.problem(target):
                download(url, target, hashes)
    except (OSError, http.client.HTTPException) as error:  # OSError covers URLError, timeouts and a full disk
        raise DataError(f"could not fetch {url} to {target}: {_reason(error, target)}. {help_}") from error
    return target


def _reason(error: Exception, target: Path) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        from lavis_lite.io import disk  # explains an error that is rare

        return disk.cannot_write(target, error).rstrip(".")
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def _local(url: str, hashes: Hashes) -> Path:
    path = resolve(unquote(split(url).path) if url.startswith("file:") else url)
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    return _checked(str(path), path, hashes)


def _checked(name: str, path: Path, hashes: Hashes) -> Path:
    """The path, once its hash is what is stated."""
    error = hashes.problem(path)
    if error:
        raise DataError(f"{name}: {error}.")
    return path


# Other schemes ----------------------------------------------------------------------------------------------------


class _Paths:
    """The one PathManager, made on first use, and the prefixes it can serve."""

    manager: PathManager | None = None
    prefixes: list[str] = []


def path_manager() -> PathManager:
    """The PathManager of iopath with the handlers registered so far; imports iopath on first use."""
    if _Paths.manager is None:
        from iopath.common.file_io import PathManager

        _Paths.manager = PathManager()
    return _Paths.manager


def register_handler(handler: PathHandler) -> None:
    """Serve another scheme: an iopath PathHandler, for example its S3PathHandler."""
    path_manager().register_handler(handler, allow_override=True)
    _Paths.prefixes += handler._get_supported_prefixes()


def _foreign(url: str, scheme: str, hashes: Hashes) -> Path:
    if not url.startswith(tuple(_Paths.prefixes)) or not _Paths.prefixes:
        known = ["https", "http", HUB, "file", *(prefix.split(":")[0] for prefix in _Paths.prefixes)]
        raise DataError(f"{url}: nothing is registered for {scheme}://; there are {', '.join(known)} "
                        f"({did_you_mean(scheme, known)} Other schemes need "
                        "lavis_lite.io.files.register_handler(<an iopath PathHandler>).)")
    return _checked(url, Path(path_manager().get_local_path(url)), hashes)
