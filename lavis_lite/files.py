"""One path layer: where files are looked up, and how those that are elsewhere get here.

Local names resolve against the working folder, then the cache folder. URLs are fetched once, whole or not at all,
checked against their hash; `hf://owner/name/path` is a file of a Hugging Face repository. Other schemes (`s3://` ...)
work once a handler for iopath's PathManager is registered; without one they are an error, where iopath alone would take
them for local names.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import os
import shlex
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from lavis_lite import hub
from lavis_lite.errors import DataError, did_you_mean, shortened

if TYPE_CHECKING:
    from iopath.common.file_io import PathHandler, PathManager

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
_WEB = ("https", "http")
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
        raise DataError(f"{shortened(str(path))}: {problem}.")
    if path.is_absolute():
        return path
    here = Path.cwd() / path
    return here if here.exists() else cache_root() / path


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
        raise DataError(f"{shortened(str(path))}: {error}") from error


def offline() -> bool:
    """Whether LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    return any(os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")
               for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"))


def is_url(name: str) -> bool:
    """Whether a name has a scheme other than file (a Windows drive letter is none)."""
    scheme = urlsplit(name).scheme
    return len(scheme) > 1 and scheme != "file" and "://" in name


def fetch_command(url: str, target: Path) -> str:
    """A shell command that does by hand what `fetch` does."""
    return f"curl -L --fail --create-dirs -o {shlex.quote(str(target))} {shlex.quote(url)}"


def target_of(url: str) -> Path:
    """Where `fetch` puts a URL that has no place of its own."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_root() / "downloads" / digest / (Path(unquote(urlsplit(url).path)).name or "file")


def cached(url: str) -> Path | None:
    """Where `fetch` has already put a URL, or None. Nothing is downloaded."""
    if url.startswith(f"{hub.SCHEME}://"):
        return hub.cached(hub.HubName.parse(url))
    path = target_of(url) if is_url(url) else resolve(unquote(urlsplit(url).path))
    return path if path.exists() else None


def fetch(url: str, sha256: str | None = None, md5: str | None = None, to: Path | None = None) -> Path:
    """A local path for a URL or a local name, downloading once.

    The file appears whole or not at all; a broken transfer goes on where it stopped if there is a hash to check the
    whole against. Several processes may ask at once: one downloads, the others wait.

    Args:
        url: https://, http:// (only with a hash, or from this machine), hf:// (see `hub`), file://, a local name, or a
            registered scheme.
        sha256, md5: expected hash in hex.
        to: where to put it; by default under the cache folder. What comes from hf:// stays in the hub's cache.

    Raises:
        DataError: unknown scheme, not there, network refused or failing, wrong hash; with the command to do it by hand.
    """
    scheme = urlsplit(url).scheme if is_url(url) else "file"
    if scheme == "file":
        return _local(url, sha256, md5)
    if scheme == hub.SCHEME:
        return _checked(url, hub.fetch(hub.HubName.parse(url), offline()), sha256, md5)
    if scheme not in _WEB:
        return _foreign(url, scheme, sha256, md5)
    target = to or target_of(url)
    if target.exists() and _hash_fault(target, sha256, md5) is None:
        return target
    help_ = f"To fetch it by hand: {fetch_command(url, target)}"
    if offline():
        raise DataError(f"{target} is not here, and LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids to fetch {url}. "
                        f"{help_}")
    if scheme == "http" and not (sha256 or md5 or _is_this_machine(url)):
        raise DataError(f"{url}: http without a hash could deliver anything; use https or state its sha256. {help_}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not target.exists() or _hash_fault(target, sha256, md5):
                _download(url, target, sha256, md5)
    except (OSError, http.client.HTTPException) as fault:  # OSError covers URLError, timeouts and a full disk
        reason = getattr(fault, "reason", None) or fault
        raise DataError(f"could not fetch {url} to {target}: {reason}. {help_}") from fault
    return target


def _local(url: str, sha256: str | None, md5: str | None) -> Path:
    path = resolve(unquote(urlsplit(url).path) if url.startswith("file:") else url)
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    return _checked(str(path), path, sha256, md5)


def _checked(name: str, path: Path, sha256: str | None, md5: str | None) -> Path:
    """The path, once its hash is what is stated."""
    fault = _hash_fault(path, sha256, md5)
    if fault:
        raise DataError(f"{name}: {fault}.")
    return path


def _hash_fault(path: Path, sha256: str | None, md5: str | None) -> str | None:
    """What is wrong with a file's hash, as a clause; None when it is right or none is stated."""
    for name, wanted in (("sha256", sha256), ("md5", md5)):
        if wanted:
            with path.open("rb") as stream:
                found = _digest(stream, name)
            if found != wanted.strip().lower():
                return f"its {name} is {found}, not {wanted}"
    return None


def _digest(stream: IO[bytes], name: str) -> str:
    """Hex digest of a stream (hashlib.file_digest, which Python 3.10 lacks)."""
    digest = hashlib.new(name)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects that are no step down: https stays https, and nobody is sent to this machine from outside."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        if _is_this_machine(newurl) and not _is_this_machine(req.full_url):
            raise urllib.error.URLError(f"it redirects to this machine ({newurl})")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, target: Path, sha256: str | None, md5: str | None) -> None:
    """Into `<target>.part`, then check, then rename. The caller holds the lock."""
    part = target.with_name(target.name + ".part")
    if not (sha256 or md5):  # a part of unknown origin could belong to another version of the file
        part.unlink(missing_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.build_opener(_SafeRedirects).open(request, timeout=_TIMEOUT_SECONDS) as response:
            _receive(response, part, have)
    except urllib.error.HTTPError as fault:
        if fault.code != 416:  # the part is as long as the file, or longer: the hash tells
            raise
    wrong = _hash_fault(part, sha256, md5)
    if wrong:
        part.unlink()
        raise OSError(f"the file that came is not the expected one: {wrong}")
    os.replace(part, target)


def _receive(response: Any, part: Path, have: int) -> None:
    resumes = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
    if response.status == 206 and not resumes:
        raise OSError("the server answered with another part of the file than was asked for")
    left = response.headers.get("Content-Length")
    received = 0
    with part.open("ab" if resumes else "wb") as stream:
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            received += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if left is not None and received != int(left):
        raise OSError(f"the transfer broke off after {received} of {left} bytes; run again to go on")


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


def _foreign(url: str, scheme: str, sha256: str | None, md5: str | None) -> Path:
    if not url.startswith(tuple(_Paths.prefixes)) or not _Paths.prefixes:
        known = ["https", "http", hub.SCHEME, "file", *(prefix.split(":")[0] for prefix in _Paths.prefixes)]
        raise DataError(f"{url}: nothing is registered for {scheme}://; there are {', '.join(known)} "
                        f"({did_you_mean(scheme, known)} Other schemes need "
                        "lavis_lite.files.register_handler(<an iopath PathHandler>).)")
    return _checked(url, Path(path_manager().get_local_path(url)), sha256, md5)
