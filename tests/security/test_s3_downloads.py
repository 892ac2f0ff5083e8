"""S3: a hostile server is never believed, never followed to a worse place, and ends within its time leaving nothing."""

from __future__ import annotations

import hashlib
import itertools
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lavis_lite.errors import ConfigError, DataError
from lavis_lite.io import download, files

BODY = b"content of a file " * 50
SHA256 = hashlib.sha256(BODY).hexdigest()
OK = b"HTTP/1.1 200 OK\r\n"
Answer = Callable[[socket.socket, str], None]


@dataclass
class Server:
    """Answers every connection with the next of its answers; the last one again and again."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("LAVIS_LITE_CACHE", str(tmp_path / "cache"))
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    listening = socket.create_server(("127.0.0.1", 0))
    state = Server(f"http://127.0.0.1:{listening.getsockname()[1]}/file.bin")

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                request = connection.recv(65536).decode("latin-1")
                state.asked.append(request)
                state.next()(connection, request)
            except OSError:
                return  # the client has hung up, as it should

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield state
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def says(content: bytes) -> Answer:
    return lambda connection, request: connection.sendall(content)


def whole(body: bytes = BODY) -> Answer:
    return says(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def forever(start: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    def answer(connection: socket.socket, request: str) -> None:
        connection.sendall(start)
        for _ in itertools.count():
            connection.sendall(piece)
            time.sleep(pause)
    return answer


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("given", [None, SHA256])
@pytest.mark.parametrize(("answer", "words"), [
    (forever(OK + b"\r\n", b"x" * 65536), "more than 1,000,000 bytes came"),
    (forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"), "more than 1,000,000"),
    (forever(OK + b"Content-Length: 100000\r\n\r\n", b"x", 0.02), "bytes came in"),
    (forever(OK + b"X-Slow: ", b"x", 0.02), "no answer came within"),
    (forever(OK, b"X-More: y\r\n"), "headers|no answer came"),
    (says(b""), "closed connection|reset|Remote end"),
    (says(b"garbage\r\n\r\n"), "garbage"),
    (says(OK + b"Content-Length: abc\r\n\r\n" + BODY), "not a number"),
    (says(OK + b"Content-Length: -5\r\n\r\n" + BODY), "not a number"),
    (says(OK + b"Content-Length: 1e3\r\n\r\n" + BODY), "not a number"),
    (says(OK + b"Content-Length: " + b"9" * 60 + b"\r\n\r\n" + BODY), "at most"),
    (says(OK + b"Content-Length: 9000000000000\r\n\r\n" + BODY), "at most"),
    (says(OK + b"Content-Length: 400000000000000\r\n\r\n" + BODY), "at most"),
    (says(OK + b"Content-Length: 10\r\n\r\n" + BODY), "more than the 10 bytes"),
    (says(OK + b"Content-Length: 2000\r\n\r\n" + BODY), "broke off after 900 of 2000"),
    (says(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 500-899/900\r\nContent-Length: 400\r\n\r\n"
          + BODY[500:]), "another part"),
    (says(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n"), "could not"),
    (says(b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\nContent-Length: 0\r\n\r\n"), "could not"),
    (says(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"), "could not"),
])
def test_s3_hostile_answers_end_and_leave_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  answer: Answer, words: str, given: str | None) -> None:
    for name, value in {"SLOW_SECONDS": 0.3, "HEADER_SECONDS": 0.5, "MOST_UNANNOUNCED": 1_000_000}.items():
        monkeypatch.setattr(download, name, value)
    server.answers = [answer]
    begun = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        files.fetch(server.url, given)
    assert time.monotonic() - begun < 20
    assert server.url in str(caught.value) and "by hand: curl" in str(caught.value)
    remain = left(tmp_path)
    assert remain in ([], ["file.bin.part"]) and (given or not remain)  # with a hash it goes on later
    server.answers = [whole()]
    assert files.fetch(server.url, given).read_bytes() == BODY
    assert left(tmp_path) == ["file.bin"]


def test_s3_a_wrong_range_is_recovered_from(server: Server, tmp_path: Path) -> None:
    part = files.target_of(server.url).with_name("file.bin.part")
    part.parent.mkdir(parents=True)
    for wrong in (b"bytes 0-899/900", b"bytes 7-899/900", b"nonsense"):
        part.write_bytes(BODY[:300])
        server.answers = [says(b"HTTP/1.1 206 Partial Content\r\nContent-Range: " + wrong
                               + b"\r\nContent-Length: 900\r\n\r\n" + BODY), whole()]
        assert files.fetch(server.url, SHA256).read_bytes() == BODY
        assert "Range: bytes=300-" in server.asked[-2] and "Range" not in server.asked[-1]
        files.target_of(server.url).unlink()


def test_s3_a_beginning_of_another_version_is_brought_anew(server: Server) -> None:
    part = files.target_of(server.url).with_name("file.bin.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 300)
    server.answers = [says(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 300-899/900\r\nContent-Length: 600"
                           b"\r\n\r\n" + BODY[300:]), whole()]
    assert files.fetch(server.url, SHA256).read_bytes() == BODY


@pytest.mark.parametrize("url", ["http://[::1/x", "http://a b/x", "https://exa\0mple.org/x", "http://127.0.0.1:port/x",
                                 "http://127.0.0.1:99999/x", "https:///x", "http://x\n.org/", "https://" + "x" * 300,
                                 "https://..", "https://\ud800.org/x", "https://exämple..org/x",
                                 "http://127.0.0.1:1\r\nX: y/z"])
def test_s3_urls_that_are_none_are_clear_errors(url: str) -> None:
    with pytest.raises(DataError, match="not a URL that can be fetched"):
        files.fetch(url, SHA256)


def test_s3_a_password_in_a_url_is_a_header_and_goes_to_no_other_host(server: Server) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    server.answers = [says(b"HTTP/1.1 302 Found\r\nLocation: " + other.encode() + b"\r\nContent-Length: 0\r\n\r\n"),
                      whole()]
    assert files.fetch(server.url.replace("://", "://me:pass%20word@")).read_bytes() == BODY
    assert "Authorization: Basic bWU6cGFzcyB3b3Jk" in server.asked[0] and "me:pass" not in server.asked[0]
    assert "Authorization" not in server.asked[1]


def test_s3_no_redirect_leads_to_an_unchecked_source() -> None:
    """More of them in tests/test_files.py."""
    here = urllib.request.Request("http://127.0.0.1:1/a")
    with pytest.raises(urllib.error.URLError, match="http without a hash"):
        download.SafeRedirects().redirect_request(here, None, 302, "", {}, "http://example.org/a")
    checked = download.SafeRedirects(checked=True)
    assert checked.redirect_request(here, None, 302, "", {}, "http://example.org/a") is not None
    for url in ("http://example.org/a", "http://10.0.0.1/a"):
        with pytest.raises(urllib.error.URLError, match="not https"):
            checked.redirect_request(urllib.request.Request("https://example.org/a"), None, 302, "", {}, url)


def test_s3_the_limit_is_a_number(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.answers = [whole()]
    for wrong in ("x", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(download.LIMIT, wrong)
        with pytest.raises(ConfigError, match="number of gigabytes"):
            files.fetch(server.url)
    monkeypatch.setenv(download.LIMIT, "0.0000001")
    with pytest.raises(DataError, match="at most 100 are taken"):
        files.fetch(server.url)
