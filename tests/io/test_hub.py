"""`hf://` names, against a stand-in of the hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.constants
import pytest

from lavis_lite.checkpoints.weights import HUB_FILES, WeightFile
from lavis_lite.errors import DataError
from lavis_lite.io import files, hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = {"config.json": b'{"model_type": "opt"}', "model.safetensors": b"weights " * 99, "extra/notes.txt": b"notes"}


@dataclass
class Hub:
    """What was asked of it, and what it has."""

    requests: list[str] = field(default_factory=list)
    broken: bool = False


class Handler(http.server.BaseHTTPRequestHandler):
    """The few addresses of the hub that its client asks for."""

    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        path = self.path.split("?")[0]
        self.state.requests.append(f"{self.command} {path}")
        if path == "/api/models/owner/name/revision/main" or path == "/api/models/owner/name":
            body = json.dumps({"id": "owner/name", "modelId": "owner/name", "sha": COMMIT,
                               "siblings": [{"rfilename": name} for name in CONTENT]}).encode()
            return self.send(body, send_body, {"Content-Type": "application/json"})
        if path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
            body = json.dumps([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                               for name, data in CONTENT.items()]).encode()
            return self.send(body, send_body, {"Content-Type": "application/json"})
        for revision in ("main", COMMIT):
            name = path.removeprefix(f"/owner/name/resolve/{revision}/")
            if name in CONTENT and not self.state.broken:
                return self.send(CONTENT[name], send_body, {"ETag": hashlib.sha1(CONTENT[name]).hexdigest()})
        self.send(b"", send_body, {"X-Error-Code": "EntryNotFound"}, 404)

    def send(self, body: bytes, send_body: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{site.server_port}"
    for name in ("LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield state
    site.shutdown()
    thread.join()
    site.server_close()


@pytest.mark.parametrize(("url", "parts"), [
    ("hf://owner/name", ("owner/name", None, "")), ("hf://owner/name/a/b.json", ("owner/name", None, "a/b.json")),
    ("hf://owner/name@v1.0/a", ("owner/name", "v1.0", "a")), ("hf://owner/name@v1", ("owner/name", "v1", ""))])
def test_names(url: str, parts: tuple[str, str | None, str]) -> None:
    name = hub.HubName.parse(url)
    assert (name.repository, name.revision, name.path) == parts
    assert str(name) == url


@pytest.mark.parametrize("url", ["hf://", "hf://owner", "hf://owner/", "hf:///name/x", "hf://owner/name/../x"])
def test_what_is_no_name(url: str) -> None:
    with pytest.raises(DataError, match="hf://owner/name/path/to/file"):
        files.fetch(url)


def test_a_file_is_fetched_once_and_checked(server: Hub) -> None:
    url = "hf://owner/name/model.safetensors"
    assert files.cached(url) is None
    path = files.fetch(url, sha256=hashlib.sha256(CONTENT["model.safetensors"]).hexdigest())
    assert path.read_bytes() == CONTENT["model.safetensors"] and path.name == "model.safetensors"
    assert files.cached(url) == path
    assert len([line for line in server.requests if line.startswith("GET") and "model.safetensors" in line]) == 1
    with pytest.raises(DataError, match="its sha256 is"):
        files.fetch(url, sha256="0" * 64)


def test_a_repository_and_a_folder_of_it(server: Hub) -> None:
    whole = files.fetch("hf://owner/name")
    assert {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()} == set(CONTENT)
    part = files.fetch("hf://owner/name/extra/")
    assert [path.name for path in part.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("switch", ["LAVIS_LITE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_but_serves_what_is_here(server: Hub, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    path = files.fetch("hf://owner/name/config.json")
    monkeypatch.setenv(switch, "1")
    server.requests.clear()
    assert files.fetch("hf://owner/name/config.json") == path
    with pytest.raises(DataError, match="forbids to fetch it. .*hf download owner/name model.safetensors"):
        files.fetch("hf://owner/name/model.safetensors")
    assert server.requests == []


def test_what_is_not_there(server: Hub) -> None:
    with pytest.raises(DataError, match="hf://owner/name/none.bin: could not fetch it: .*hf download owner/name none"):
        files.fetch("hf://owner/name/none.bin")


@pytest.mark.parametrize("value", ["owner/name", "hf://owner/name"])
def test_a_language_model_of_which_only_the_configuration_is_here_is_not_here(server: Hub, value: str) -> None:
    need = WeightFile("llm_model", value)
    assert not need.is_local() and "hf download owner/name" in need.describe_missing()
    files.fetch("hf://owner/name/config.json")
    assert not need.is_local(), "transformers reads configurations alone"
    folder = need.fetch()
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    server.requests.clear()
    assert need.is_local() and need.fetch() == folder and server.requests == []


def test_a_download_that_broke_off_is_not_taken_for_whole(server: Hub) -> None:
    need = WeightFile("llm_model", "owner/name")
    server.broken = True
    with pytest.raises(DataError, match="could not fetch"):
        need.fetch()
    assert not need.is_local()
    server.broken = False
    assert (need.fetch() / "model.safetensors").read_bytes() == CONTENT["model.safetensors"]
    assert HUB_FILES["llm_model"]


def test_offline_names_of_repositories_say_so(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    with pytest.raises(DataError, match="LAVIS_LITE_OFFLINE or HF_HUB_OFFLINE forbids"):
        WeightFile("llm_model", "owner/name").fetch()
    assert server.requests == []
