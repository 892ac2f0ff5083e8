"""One file over http or https: whole or not at all, within limits, from where its URL says or from nowhere.

A transfer ends when it is too slow, too long, larger than announced, or would fill the disk. What came is kept for the
next try only if there is a hash to check the whole against.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import ipaddress
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from lavis_lite.errors import ConfigError, DataError, shown

CHUNK = 1 << 20
SILENCE_SECONDS = 30.0
"""without a single byte, after which a connection is given up"""
HEADER_SECONDS = 60.0
"""until the headers of an answer are there"""
SLOW_SECONDS, SLOWEST = 30.0, 1024
"""in every so many seconds at least so many bytes per second come, or the transfer is given up"""
MOST_SECONDS = 24 * 3600.0
"""of one transfer"""
MOST_UNANNOUNCED = 2 << 30
"""bytes of an answer that does not say how long it is"""
RESERVE = 256 << 20
"""bytes of the disk that stay free"""
LIMIT = "LAVIS_LITE_MAX_DOWNLOAD_GB"
_DEFAULT_GB = 500.0


class StartOverError(OSError):
    """What was kept of an earlier try is of no use."""


@dataclass(frozen=True)
class Hashes:
    """What a file is checked against, in hex; None: not known."""

    sha256: str | None = None
    md5: str | None = None

    def __bool__(self) -> bool:
        return bool(self.sha256 or self.md5)

    def problem(self, path: Path) -> str | None:
        """What is wrong with a file's hash, as a clause; None when it is right or none is stated."""
        for name, wanted in (("sha256", self.sha256), ("md5", self.md5)):
            if wanted:
                with path.open("rb") as stream:
                    found = _digest(stream, name)
                if found != wanted.strip().lower():
                    return f"its {name} is {found}, not {wanted}"
        return None


def _digest(stream: IO[bytes], name: str) -> str:
    """Hex digest of a stream (hashlib.file_digest, which Python 3.10 lacks)."""
    digest = hashlib.new(name)
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


# --- URLs ----------------------------------------------------------------------------------------------------------
def split(url: str) -> SplitResult:
    """The parts of a URL.

    Raises:
        DataError: it is not one.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is not a number
        if parts.scheme in ("http", "https"):
            _check_host(url, parts.hostname or "")
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{shown(url)}: not a URL that can be fetched ({error}).") from error
    return parts


def _check_host(url: str, host: str) -> None:
    if not host:
        raise ValueError("it names no host")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("it has a space or a control character in it; write %20 for a space")
    host.encode("idna")


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is the machine that this runs on."""
    host = split(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _request(url: str, have: int) -> urllib.request.Request:
    """A request for a URL, or for what follows its first `have` bytes; a password in it becomes a header."""
    parts = split(url)
    user, _, place = parts.netloc.rpartition("@")
    host = place.encode("idna").decode() if not place.isascii() else place
    path = quote(parts.path, safe="/%:=&;!$'()*+,@~") if not parts.path.isascii() else parts.path
    request = urllib.request.Request(parts._replace(netloc=host, path=path, fragment="").geturl(),
                                     headers={"Range": f"bytes={have}-"} if have else {})
    if user:
        name, _, password = user.partition(":")
        login = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    return request


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects that are not a step down: no https to http, and no server elsewhere leads to this machine.

    Args:
        checked: whether what comes is checked against a hash; if not, plain http elsewhere is refused.
    """

    def __init__(self, checked: bool = False) -> None:
        self.checked = checked

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:
        """The next request.

        Raises:
            URLError: the redirect is refused.
        """
        try:
            scheme = split(newurl).scheme
        except DataError as error:
            raise urllib.error.URLError(f"it redirects to {error}") from error
        if scheme not in ("https", urlsplit(req.full_url).scheme):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        if is_this_machine(newurl) and not is_this_machine(req.full_url):
            raise urllib.error.URLError(f"it redirects to this machine ({newurl})")
        if scheme == "http" and not self.checked and not is_this_machine(newurl):
            raise urllib.error.URLError(f"it redirects to {newurl}: http without a hash could deliver anything")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# --- transfers -----------------------------------------------------------------------------------------------------
def download(url: str, target: Path, hashes: Hashes) -> None:
    """Into `<target>.part`, then check, then rename. The caller holds the lock.

    Raises:
        OSError, HTTPException: it did not work; without a hash nothing is left.
        DataError: it is not a URL.
    """
    part = target.with_name(target.name + ".part")
    if not hashes:  # a part of unknown origin could belong to another version of the file
        part.unlink(missing_ok=True)
    try:
        _transfer(url, part, hashes)
    except StartOverError:
        part.unlink(missing_ok=True)
        _transfer(url, part, hashes)
    except BaseException:
        if not hashes:
            part.unlink(missing_ok=True)
        raise
    os.replace(part, target)


def _transfer(url: str, part: Path, hashes: Hashes) -> None:
    """Bring the rest of a part here, and check the whole."""
    have = part.stat().st_size if part.exists() else 0
    opener = urllib.request.build_opener(SafeRedirects(bool(hashes)), _Http, _Https)
    try:
        with opener.open(_request(url, have), timeout=SILENCE_SECONDS) as response:
            _receive(response, part, have)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is as long as the file, or longer: the hash tells
            raise
    except _TooMuchError:
        part.unlink(missing_ok=True)
        raise
    except ValueError as error:
        raise OSError(f"the server redirects to something that is not a URL ({error})") from error
    wrong = hashes.problem(part)
    if wrong:
        part.unlink()
        if have:  # perhaps the beginning was of another version
            raise StartOverError(wrong)
        raise OSError(f"the file that came is not the expected one: {wrong}")


class _TooMuchError(OSError):
    """More came than was announced or is taken."""


def _receive(response: Any, part: Path, have: int) -> None:
    """Write an answer's body after what there is.

    Raises:
        StartOverError: the server sends another part than was requested.
        OSError: see `_announced` and `Pace`; or the transfer broke off.
    """
    resumes = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
    if response.status == 206 and not (resumes and have):
        wrong = "the server answered with another part of the file than was requested"
        raise StartOverError(wrong) if have else OSError(wrong)
    announced = _announced(response.headers, part)
    most = MOST_UNANNOUNCED if announced is None else announced
    received, pace = 0, Pace()
    with part.open("ab" if resumes else "wb") as stream:
        while chunk := _next(response, announced, received):
            received += len(chunk)
            if received > most:
                raise _TooMuchError(f"more than {most:,} bytes came, and the server had not said how many there are")
            stream.write(chunk)
            pace.check(received)
        stream.flush()
        os.fsync(stream.fileno())
    if announced is not None and received != announced:
        raise OSError(f"the transfer broke off after {received} of {announced} bytes; run again to continue")


def _next(response: Any, announced: int | None, received: int) -> bytes:
    """What has arrived, at most one chunk. The last byte comes alone, so that bytes after it are seen."""
    if announced is None or received < announced - 1:
        most = CHUNK if announced is None else min(CHUNK, announced - 1 - received)
        return bytes(response.read1(most))
    if received == announced - 1 and len(response.peek(2)) > 1:
        raise _TooMuchError(f"the server sends more than the {announced:,} bytes that it announced")
    return bytes(response.read1(1)) if received < announced else b""


def _announced(headers: Mapping[str, str], part: Path) -> int | None:
    """Bytes that an answer says it has; None: it does not say.

    Raises:
        OSError: it is not a number, more than is taken, or more than the disk has room for.
    """
    given = headers.get("Content-Length")
    if given is None:
        return None
    if not (given.isascii() and given.strip().isdecimal()):
        raise OSError(f"the server says that the file has {shown(given)} bytes, which is not a number")
    length, limit = int(given[:30]), most_bytes()
    if length > limit:
        raise OSError(f"the file has {length:,} bytes, and at most {limit:,} are taken; raise {LIMIT}")
    free = shutil.disk_usage(part.parent).free
    if length > max(free - RESERVE, 0):
        raise OSError(f"the file has {length:,} bytes, and the disk has {free:,} free")
    return length


def most_bytes() -> int:
    """Bytes that one download may have: LAVIS_LITE_MAX_DOWNLOAD_GB, by default 500 gigabytes.

    Raises:
        ConfigError: the environment variable is not a number above 0.
    """
    given = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(given) if given else _DEFAULT_GB
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e9:
        raise ConfigError(f"{LIMIT}={shown(given)}: must be a number of gigabytes above 0, for example 500.")
    return int(gigabytes * 1e9)


class Pace:
    """Watches how fast a transfer is."""

    def __init__(self) -> None:
        self._begun = self._since = time.monotonic()
        self._before = 0

    def check(self, received: int) -> None:
        """Take note of how many bytes have come so far.

        Raises:
            OSError: too few in the last half minute, or it has taken a day.
        """
        now = time.monotonic()
        if now - self._begun > MOST_SECONDS:
            raise OSError(f"it took longer than {MOST_SECONDS / 3600:g} hours")
        if now - self._since < SLOW_SECONDS:
            return
        if received - self._before < SLOWEST * (now - self._since):
            raise OSError(f"only {received - self._before:,} bytes came in {now - self._since:.0f} seconds")
        self._since, self._before = now, received


class _Patient:
    """A connection on which an answer's headers come within a minute, however slowly each byte does."""

    sock: socket.socket | None

    def getresponse(self) -> Any:
        """As http.client's.

        Raises:
            OSError: they did not come.
        """
        late = threading.Event()
        timer = threading.Timer(HEADER_SECONDS, self._give_up, (late,))
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()
            if late.is_set():  # in place of whatever a connection that was cut gives
                raise OSError(f"no answer came within {HEADER_SECONDS:g} seconds")

    def _give_up(self, late: threading.Event) -> None:
        late.set()
        if self.sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self.sock.shutdown(socket.SHUT_RDWR)


class _HttpConnection(_Patient, http.client.HTTPConnection):
    pass


class _HttpsConnection(_Patient, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpsConnection, req)
