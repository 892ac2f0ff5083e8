"""What the demo page does, without the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_lite.apps import models
from lavis_lite.apps.actions import ask
from lavis_lite.apps.demo import EXAMPLE, Page
from lavis_lite.apps.models import Models, source_of
from lavis_lite.errors import ConfigError, DataError, LavisLiteError
from lavis_lite.models.protocols import Answerer, Captioner, ChatModel, Matcher, Retriever

NAMES = ["blip2_t5_instruct", "blip2_opt/mini", "blip2"]


@pytest.fixture(scope="module")
def known() -> Models:
    return Models(NAMES)


@pytest.fixture
def page(known: Models) -> Page:
    return Page(known)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """The packaged scene, plain colours, something that is no picture, and other files."""
    for name, color in (("red", "red"), ("green", "green")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    (tmp_path / "scene.jpg").write_bytes(EXAMPLE.read_bytes())
    (tmp_path / "broken.jpg").write_text("nothing")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def last(given: Iterator[Any]) -> Any:
    *_, found = given
    return found


# names ----------------------------------------------------------------------------------------------------------------
def test_names_are_archs_types_checkpoints_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of("blip2_opt").arguments == {"name": "blip2_opt", "model_type": "mini", "checkpoint": None}
    assert source_of("blip2_opt/mini_instruct@a.pth").arguments == {
        "name": "blip2_opt", "model_type": "mini_instruct", "checkpoint": "a.pth"}
    with pytest.raises(ConfigError, match=r"no model or run 'blip2_optt'; did you mean 'blip2_opt'"):
        Models(["blip2_optt"])
    with pytest.raises(ConfigError, match="blip2_opt has no type 'minni'; did you mean 'mini'"):
        source_of("blip2_opt/minni")
    with pytest.raises(LavisLiteError, match="neither a run folder nor a folder above runs"):
        source_of(str(tmp_path))


def test_a_run_is_named_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        folder = tmp_path / "checkpoints" / "step_00000002"

    class Section:
        arch = "blip2_opt"

    asked: list[Any] = []
    monkeypatch.setattr("lavis_lite.runs.find_checkpoint", lambda *given: asked.append(given) or Found)
    monkeypatch.setattr("lavis_lite.runs.model_sections", lambda found: (Section, None))
    assert source_of(f"{tmp_path}@last") == models.Source("blip2_opt", {"run": Found.folder})
    assert asked == [(str(tmp_path), "last")]


def test_models_are_loaded_once_and_only_if_they_are_offered(known: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known.get("blip2") is known.get("blip2")
    assert known.able(Answerer) == known.able(ChatModel) == NAMES[:2]
    assert known.able(Matcher) == known.able(Retriever) == ["blip2"] and known.able(Captioner) == NAMES
    with pytest.raises(ConfigError, match="'blip2_t5' is not offered here; did you mean 'blip2'"):
        known.get("blip2_t5")
    monkeypatch.setattr(models, "MOST_LOADED", 1)
    few = Models(["blip2"], any_name=True)
    first = few.get("blip2")
    assert few.get("blip2_feature_extractor").can(Matcher) and few.get("blip2") is not first


# texts ----------------------------------------------------------------------------------------------------------------
def test_captions_and_answers_and_where_they_come_from(page: Page) -> None:
    answers = list(page.ask("blip2_t5_instruct", str(EXAMPLE), " what color is the triangle? ", True))
    assert [text for text, _ in answers] == ["blue"] * 2 and answers[0][1] is None
    assert answers[1][1].size == (2 * 200 + 8, 230)
    [(caption, nothing)] = page.caption("blip2_opt/mini", str(EXAMPLE), "", False)
    assert "triangle" in caption and nothing is None
    again, drawn = last(page.caption("blip2", str(EXAMPLE), "", True))
    assert again and drawn.width == 3 * 200 + 8
    both = last(page.compare("blip2_t5_instruct", "blip2_opt/mini", str(EXAMPLE), "what color is the triangle?", True))
    assert both[0] == "blue" and both[1] is not None and both[2] and both[3] is not None
    assert last(page.compare("blip2_opt/mini", "blip2", str(EXAMPLE), "", False)) == (caption, None, again, None)


def test_what_is_missing_is_said(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no picture yet"):
        last(page.ask("blip2_t5_instruct", None, "what?", False))
    with pytest.raises(DataError, match="no question yet"):
        last(page.ask("blip2_t5_instruct", str(EXAMPLE), " ", False))
    with pytest.raises(DataError, match="the question has 2001 characters; at most 2000"):
        last(page.ask("blip2_t5_instruct", str(EXAMPLE), "x" * 2001, False))
    with pytest.raises(ConfigError, match="blip2 cannot answer questions"):
        last(page.ask("blip2", str(EXAMPLE), "what?", False))
    with pytest.raises(DataError, match=r"the prompt has 0 places \{\} for the question"):
        ask(page.models.get("blip2_t5_instruct"), Image.new("RGB", (9, 9)), "what?", "Question: Answer:")
    (tmp_path / "bad.png").write_text("nothing")
    with pytest.raises(DataError, match="this file cannot be used: "):
        last(page.caption("blip2", str(tmp_path / "bad.png"), "", False))
    with pytest.raises(DataError, match="51 texts; at most 50"):
        last(page.match("blip2", str(EXAMPLE), "\n".join("abc" for _ in range(51))))


def test_a_conversation_streams_and_is_remembered(page: Page) -> None:
    steps = list(page.reply("blip2_t5_instruct", str(EXAMPLE), "what color is the triangle?", [], None))
    turns, talk, *emptied = steps[-1]
    assert turns[-1] == {"role": "assistant", "content": "blue"} and emptied == ["", None]
    assert turns[0]["content"]["path"] == str(EXAMPLE) and len(turns) == 3
    more, same, *_ = last(page.reply("blip2_t5_instruct", None, "is there a triangle?", turns, talk))
    assert same is talk and len(more) == 5 and len(talk.chat.turns) == 4 and len(talk.chat.vectors) == 1
    fresh, other, *_ = last(page.reply("blip2_opt/mini", None, "hello", more, talk))
    assert other is not talk and len(fresh) == 2, "another model begins anew"


# matching and search --------------------------------------------------------------------------------------------------
def test_the_right_text_matches_best(page: Page) -> None:
    right = "large striped blue triangle bottom left, small white circle bottom"
    [(rows, drawn)] = page.match("blip2", str(EXAMPLE), f"large striped red star top\n\n {right} ")
    assert [row[2] for row in rows] == [right, "large striped red star top"]
    assert float(rows[0][0]) > 0.5 > float(rows[1][0]) and float(rows[0][1]) > float(rows[1][1])
    assert drawn.width == 3 * 200 + 8


def test_a_folder_is_searched_by_text_and_by_picture(page: Page, album: Path) -> None:
    [(found, note)] = page.search("blip2", str(album), "large striped blue triangle bottom left", None)
    assert found[0][1].endswith("scene.jpg") and len(found) == 3
    assert note == "3 pictures were searched; 1 could not be read, broken.jpg first."
    [(near, _)] = page.search("blip2", str(album), "", str(album / "green.png"))
    assert near[0][1] == "1.000  green.png" and np.asarray(near[0][0])[0, 0].tolist() == [0, 128, 0]
    kept = page._album
    last(page.search("blip2", str(album), "red", None))
    assert page._album is kept
    Image.new("RGB", (9, 9)).save(album / "more.png")
    [(_, note)] = page.search("blip2", str(album), "red", None)
    assert note.startswith("4 pictures")


def test_folders_that_cannot_be_searched(known: Models, page: Page, album: Path) -> None:
    with pytest.raises(DataError, match="there is no folder /nowhere"):
        last(page.search("blip2", "/nowhere", "red", None))
    with pytest.raises(DataError, match="no folder yet"):
        last(page.search("blip2", "", "red", None))
    with pytest.raises(ConfigError, match="cannot search"):
        last(page.search("blip2_opt/mini", str(album), "red", None))
    (album / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 pictures"):
        last(page.search("blip2", str(album / "empty"), "red", None))
    closed = Page(known, any_folder=False, folder=str(album))
    with pytest.raises(ConfigError, match="only the folder"):
        last(closed.search("blip2", str(album.parent), "red", None))
    assert last(closed.search("blip2", str(album), "red", None))
