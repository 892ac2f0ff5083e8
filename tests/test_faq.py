"""What the answers of docs/faq.md name is there: settings compose, commands take their options, paths exist."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from lavis_lite.cli import data
from lavis_lite.cli.completion import words
from lavis_lite.cli.main import COMMANDS
from lavis_lite.config.compose import compose
from lavis_lite.config.recipes import find_recipe
from tests.end_to_end.conftest import ROOT

PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\*\*(.+?)\*\* ", PAGE, re.MULTILINE | re.DOTALL)
CODES = re.findall(r"`([^`]+)`", PAGE)
SETTINGS = sorted({code for code in CODES if re.match(r"(run|model)\.\w", code)})
KEYS = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
FOLDERS = ("projects/", "run_scripts/", "examples/")


def test_every_repeated_question_has_an_answer() -> None:
    assert len(QUESTIONS) >= 25 and len(set(QUESTIONS)) == len(QUESTIONS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_compose(setting: str) -> None:
    section, _, key = setting.partition("=")[0].partition(".")
    assert f"`{key}`" in KEYS or f"`{section}.{key}`" in KEYS
    if "=" in setting:
        assert compose(str(ROOT / "projects/blip2/stage2_opt.yaml"), [setting]).errors == []


def test_commands_and_their_options() -> None:
    """`python -m lavis_lite COMMAND`, `data COMMAND`, or a command's name alone."""
    known, seen = words(), 0
    for code in CODES:
        named = shlex.split(code.removeprefix("python -m lavis_lite "))
        if named[0] not in COMMANDS or (named[0] in ("data", "chat") and len(named) == 1):  # also a builder's name
            continue
        seen += 1
        assert {word for word in named if word.startswith("--")} <= set(known[named[0]]), code
        if named[0] == "data":
            assert named[1] in data.COMMANDS, code
        if named[0] in ("train", "fetch") and named[1] != "own.yaml":
            assert find_recipe(named[1]), code
    assert seen >= 10


def test_paths_and_names() -> None:
    for code in CODES:
        if code.startswith(FOLDERS) or code.endswith((".txt", ".py")) and " " not in code:
            assert list(ROOT.glob(code.rstrip("/"))), code
    importlib.import_module("projects.flamingo")
