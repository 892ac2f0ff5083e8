"""`python -m lavis_lite chat`: turns by arguments and from the terminal, pictures at any turn, and clear errors."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from lavis_lite.cli.main import main

MODEL = ["chat", "--model", "blip2_opt", "--type", "mini", "--device", "cpu", "--max-new-tokens", "6"]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_messages_are_answered_in_one_conversation(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    turns = ["--template", "vicuna_v1", "--message", "What is it?", "--message", "And now?"]
    assert main([*MODEL, "--image", picture, *turns]) == 0
    both = capsys.readouterr().out.splitlines()
    assert len(both) == 2
    assert main([*MODEL, "--image", picture, "--temperature", "0", *turns[:4]]) == 0
    assert capsys.readouterr().out.splitlines() == both[:1]


def test_a_terminal_adds_pictures_and_goes_on_after_an_error(picture: str, capsys: pytest.CaptureFixture[str],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image nowhere.png\n/image {picture}\nWhat is it?\n/reset\n/quit\n"))
    assert main([*MODEL, "--template", "vicuna_v1"]) == 0
    heard = capsys.readouterr()
    assert len(heard.out.splitlines()) == 1
    assert heard.err.count("error:") == 1 and "nowhere.png" in heard.err and "/image PATH" in heard.err


@pytest.mark.parametrize(("words", "message"), [
    (["chat", "--model", "blip2", "--message", "a"], "this model holds no conversations"),
    ([*MODEL, "--image", "nowhere.png", "--message", "a"], "--image: there is no file nowhere.png"),
    ([*MODEL, "--template", "vicuna_v2", "--message", "a"], "vicuna_v1"),
    ([*MODEL, "--temperature", "-1", "--message", "a"], "temperature is -1.0, but must be above 0"),
])
def test_what_cannot_be_is_one_error(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and message in said and "Traceback" not in said
