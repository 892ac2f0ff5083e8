"""`convert --push`: what is uploaded where, against a stand-in of the hub's client."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from lavis_lite.checkpoints.export import CheckpointMetadata, export_lite
from lavis_lite.cli.main import main
from tests.checkpoints.export_helpers import build, section_of_arch


class Client:
    """Remembers what the hub's client was asked to do."""

    calls: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append((repository, options))
        if self.error is not None:
            raise self.error

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        files = {path.name: path.stat().st_size for path in Path(options["folder_path"]).iterdir()}
        self.calls.append((options["repo_id"], files))
        return SimpleNamespace(commit_url=f"hub/{options['repo_id']}/commit/1")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Client]:
    """The stand-in; the working folder is empty, and the network is not forbidden."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAVIS_LITE_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    monkeypatch.setattr(Client, "calls", [])
    monkeypatch.setattr(Client, "error", None)
    section = section_of_arch("blip2", tmp_path)
    export_lite(build(section), "trained", origin=CheckpointMetadata(section))
    return Client


def push(*words: str, to: str = "hf", repository: str = "me/my-model") -> int:
    return main(["convert", "--to", to, "--checkpoint", "trained", "--out", "model", "--push", repository,
                 *words])


def test_the_folder_and_its_card_are_uploaded(client: type[Client], capsys: pytest.CaptureFixture[str]) -> None:
    assert push() == 0
    (created, options), (repository, files) = client.calls
    assert created == repository == "me/my-model" and options == {"private": True, "exist_ok": True}
    assert {"README.md", "config.json", "model.safetensors"} <= files.keys() and all(files.values())
    assert "uploaded to hub/me/my-model/commit/1" in capsys.readouterr().out


def test_what_cannot_be_uploaded_is_refused_before_work(client: type[Client], monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert push(repository="no owner") == 2 and "write owner/name" in capsys.readouterr().err
    assert push(to="lavis") == 2 and "use it with --to hf" in capsys.readouterr().err
    monkeypatch.setenv("LAVIS_LITE_OFFLINE", "1")
    assert push() == 2 and "forbids to upload" in capsys.readouterr().err
    assert client.calls == [] and not Path("model").exists()


def test_a_refusal_of_the_hub_says_what_to_do(client: type[Client], monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(client, "error", OSError("401 Client Error. Unauthorized"))
    assert push("--public") == 2
    message = capsys.readouterr().err
    assert "401 Client Error" in message and "hf auth login" in message and "hf upload me/my-model model ." in message
    assert client.calls[0][1]["private"] is False and Path("model", "README.md").is_file()
