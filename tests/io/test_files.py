"""Paths and downloads, against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lavis_lite.errors import DataError
from lavis_lite.io import files
from lavis_lite.io.download import SafeRedirects

REPOSITORY = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Site:
    """A web server whose next answers a test can spoil."""

    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """path and Range header of each request"""
    break_after: int | None = None
    """bytes after which the next transfers break off"""
    pause_after: int | None = None
    """bytes after which the next transfers wait for `go_on`"""
    go_on: threading.Event = field(default_factory=threading.Event)
    redirect: str | None = None
    ranges: bool = True


@pytest.fixture
def site(monkeypatch, tmp_path) -> Iterator[Site]:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.end_headers()
                return
            if not self.path.startswith("/file"):
                self.send_error(404)
                return
            first = int(wanted.split("=")[1].rstrip("-")) if wanted and state.ranges else 0
            if first >= len(CONTENT):
                self.send_error(416)
                return
            body = CONTENT[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(body)))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            if state.pause_after is not None:
                self.wfile.write(body[:state.pause_after])
                self.wfile.flush()
                state.go_on.wait(60)
                body = body[state.pause_after:]
            self.wfile.write(body[:state.break_after])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def wait_until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_names_resolve_in_the_working_folder_then_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert files.cache_root() == tmp_path / "cache"
    assert files.resolve("a/b.json") == tmp_path / "cache" / "a" / "b.json"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").touch()
    assert files.resolve("a/b.json") == tmp_path / "a" / "b.json"
    assert files.resolve("/x/y") == Path("/x/y")
    monkeypatch.delenv("LAVIS_LITE_CACHE")
    assert files.cache_root() == Path.home() / ".cache" / "lavis_lite"


@pytest.mark.parametrize(("value", "is_offline"), [("1", True), ("true", True), ("0", False), ("", False),
                                                   ("off", False)])
@pytest.mark.parametrize("name", ["LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(monkeypatch, name, value, is_offline):
    for other in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert files.offline() is is_offline


def test_a_file_is_fetched_once(site, tmp_path):
    path = files.fetch(f"{site.url}/file%20a.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT and path.name == "file a.bin"
    assert files.fetch(f"{site.url}/file%20a.bin", sha256=SHA256) == path
    assert files.cached(f"{site.url}/file%20a.bin") == path and files.cached(f"{site.url}/file_b") is None
    assert len(site.requests) == 1
    assert leftovers(tmp_path) == ["file a.bin"]


def test_to_and_md5(site, tmp_path):
    target = tmp_path / "deep" / "down" / "x.bin"
    assert files.fetch(f"{site.url}/file", md5=MD5.upper(), to=target) == target
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_a_wrong_hash_leaves_nothing(site, tmp_path, wrong):
    with pytest.raises(DataError, match=r"could not fetch http://127.*not the expected one.*curl -L --fail"):
        files.fetch(f"{site.url}/file", **wrong)
    assert leftovers(tmp_path) == []


def test_a_damaged_file_is_fetched_again(site):
    path = files.fetch(f"{site.url}/file", sha256=SHA256)
    path.write_bytes(b"torn")
    assert files.fetch(f"{site.url}/file", sha256=SHA256).read_bytes() == CONTENT


def test_a_broken_transfer_goes_on_where_it_stopped(site, tmp_path):
    site.break_after = 300_000
    with pytest.raises(DataError, match="could not fetch"):
        files.fetch(f"{site.url}/file", sha256=SHA256)
    assert leftovers(tmp_path) == ["file.part"]
    site.break_after = None
    assert files.fetch(f"{site.url}/file", sha256=SHA256).read_bytes() == CONTENT
    assert site.requests[-1][1] == "bytes=300000-"
    assert leftovers(tmp_path) == ["file"]


def test_a_server_without_ranges_starts_over(site):
    site.break_after = 300_000
    with pytest.raises(DataError):
        files.fetch(f"{site.url}/file", sha256=SHA256)
    site.break_after, site.ranges = None, False
    assert files.fetch(f"{site.url}/file", sha256=SHA256).read_bytes() == CONTENT


def test_a_part_without_a_hash_is_not_trusted(site):
    site.break_after = 300_000
    with pytest.raises(DataError):
        files.fetch(f"{site.url}/file")
    site.break_after = None
    assert files.fetch(f"{site.url}/file").read_bytes() == CONTENT
    assert site.requests[-1][1] is None


def test_a_complete_part_is_taken(site):
    target = files.target_of(f"{site.url}/file")
    target.parent.mkdir(parents=True)
    target.with_name("file.part").write_bytes(CONTENT)
    assert files.fetch(f"{site.url}/file", sha256=SHA256).read_bytes() == CONTENT


def test_not_found_names_url_target_and_command(site, tmp_path):
    with pytest.raises(DataError) as caught:
        files.fetch(f"{site.url}/nothing", to=tmp_path / "x y.json")
    message = str(caught.value)
    assert f"{site.url}/nothing" in message and "curl -L --fail --create-dirs -o '" in message
    assert str(tmp_path / "x y.json") in message and "Not Found" in message
    assert leftovers(tmp_path) == []


def start_fetch(site: Site, **environment: str) -> subprocess.Popen[str]:
    """Another process that fetches /file with its hash and prints the path."""
    code = ("from lavis_lite.io import download, files; download.CHUNK = 65536; "
            f"print(files.fetch({site.url + '/file'!r}, {SHA256!r}))")
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_process_killed_in_the_middle_leaves_no_half_file_and_the_next_goes_on(site, tmp_path):
    site.pause_after, site.go_on = 300_000, threading.Event()
    process = start_fetch(site)
    part = files.target_of(f"{site.url}/file").with_name("file.part")
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    assert leftovers(tmp_path) == ["file.part"]
    process.kill()
    process.communicate()
    site.go_on.set()
    site.pause_after = None
    have = part.stat().st_size
    assert 0 < have < len(CONTENT) and leftovers(tmp_path) == ["file.part"]
    assert files.fetch(f"{site.url}/file", sha256=SHA256).read_bytes() == CONTENT
    assert site.requests[-1][1] == f"bytes={have}-"
    assert leftovers(tmp_path) == ["file"]


def test_two_processes_ask_at_once_and_one_downloads(site, tmp_path):
    site.pause_after, site.go_on = 300_000, threading.Event()
    both = [start_fetch(site), start_fetch(site)]
    wait_until(lambda: len(site.requests) == 1)
    time.sleep(0.2)
    site.go_on.set()
    printed = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    target = files.target_of(f"{site.url}/file")
    assert [out.strip() for out, _ in printed] == [str(target)] * 2 and target.read_bytes() == CONTENT
    assert len(site.requests) == 1 and leftovers(tmp_path) == ["file"]


def test_no_server(site, tmp_path):
    with pytest.raises(DataError, match="could not fetch http://127.0.0.1:9/file"):
        files.fetch("http://127.0.0.1:9/file")


def test_offline_asks_nobody_but_serves_what_is_here(site, monkeypatch):
    path = files.fetch(f"{site.url}/file", sha256=SHA256)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert files.fetch(f"{site.url}/file", sha256=SHA256) == path
    with pytest.raises(DataError, match="LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids"):
        files.fetch(f"{site.url}/file2")
    assert len(site.requests) == 1


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_redirects_to_other_schemes_are_refused(site, tmp_path, place):
    site.redirect = place
    with pytest.raises(DataError, match="could not fetch"):
        files.fetch(f"{site.url}/file")
    assert leftovers(tmp_path) == []


def test_redirects_never_step_down():
    handler = SafeRedirects()
    request = urllib.request.Request("https://example.org/a")
    for place, words in (("http://example.org/a", "not https"), ("https://127.0.0.1/a", "this machine"),
                         ("https://localhost/a", "this machine"), ("file:///etc/passwd", "not https")):
        with pytest.raises(urllib.error.URLError, match=words):
            handler.redirect_request(request, None, 302, "", {}, place)
    assert handler.redirect_request(request, None, 302, "", {}, "https://cdn.example.org/a").full_url.startswith("https")


def test_plain_http_from_elsewhere_needs_a_hash():
    with pytest.raises(DataError, match="http without a hash"):
        files.fetch("http://example.org/never_asked")


def test_several_processes_ask_at_once(site):
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: files.fetch(f"{site.url}/file", sha256=SHA256), range(8)))
    assert len(paths) == 1 and paths.pop().read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_local_files_and_file_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").write_bytes(CONTENT)
    assert files.fetch("a b", sha256=SHA256) == tmp_path / "a b"
    assert files.fetch((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    with pytest.raises(DataError, match="there is no such file"):
        files.fetch("none")
    with pytest.raises(DataError, match="its md5 is"):
        files.fetch("a b", md5="0")


def test_an_unknown_scheme_is_an_error_until_a_handler_is_registered(tmp_path, monkeypatch):
    from iopath.common.file_io import PathHandler

    class Shelf(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return ["shelf://"]

        def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
            return str(tmp_path / path.removeprefix("shelf://"))

    monkeypatch.setattr(files._Paths, "manager", None)
    monkeypatch.setattr(files._Paths, "prefixes", [])
    with pytest.raises(DataError, match=r"nothing is registered for shelf://.*register_handler"):
        files.fetch("shelf://x")
    with pytest.raises(DataError, match="there are https, http, hf, file .did you mean 'https'"):
        files.fetch("htps://x/y")
    files.register_handler(Shelf())
    (tmp_path / "x").write_bytes(CONTENT)
    assert files.fetch("shelf://x", sha256=SHA256) == tmp_path / "x"
    with pytest.raises(DataError, match="its sha256 is"):
        files.fetch("shelf://x", sha256="0")
