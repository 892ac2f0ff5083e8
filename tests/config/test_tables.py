"""The papers' tables: every evaluation recipe states its table and score, and the README beside it agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lavis_lite.registry import registry

ROOT = Path(__file__).resolve().parents[2] / "projects"
RECIPES = sorted(ROOT.glob("*/eval/*.yaml"))
ROW = re.compile(r"^\| .* \| (?P<score>[^|]*) \| (?P<measured>[^|]*)\| \[(?P<name>\S+)\]\(eval/(?P<file>\S+)\) \|$",
                 re.MULTILINE)
CELLS = {"blip2": 24 + 6 + 6 + 4 + 2 + 6, "instructblip": 13 * 4 + 14}
"""Tables 2 to 6, Table 1, and the embedded default's twins"""


def header(path: Path) -> tuple[str, str]:
    """(first line, expected score) of a recipe."""
    lines = path.read_text().splitlines()
    expected = re.fullmatch(r"# Expected: (.+?) \(.+\)\.", lines[1])
    assert expected is not None, f"{path}: its second line must state the expected score"
    return lines[0], expected[1]


@pytest.mark.parametrize("project", sorted(CELLS))
def test_tables_and_recipes_agree(project: str) -> None:
    rows = {row["file"]: row for row in ROW.finditer((ROOT / project / "README.md").read_text())}
    recipes = [path for path in RECIPES if path.parent.parent.name == project]
    assert len(recipes) == CELLS[project] and set(rows) == {path.name for path in recipes}
    for path in recipes:
        first, expected = header(path)
        assert rows[path.name]["score"] == expected, path
        assert re.match(r"# (BLIP-2, Table [2-6]|InstructBLIP, Table 1|The embedded default's twin): ", first), path
        assert rows[path.name]["name"] == path.name
        measured = rows[path.name]["measured"].strip()
        assert measured == (expected if path.name.startswith("mini_") else ""), f"{path}: the papers' cells are not run"


def test_every_task_has_a_recipe_on_the_embedded_default() -> None:
    asked = {re.search(r"^  task: (\S+)$", path.read_text(), re.MULTILINE)[1]  # type: ignore[index]
             for path in RECIPES if path.name.startswith("mini_")}
    assert asked == set(registry.list_tasks())


def test_links_of_the_readmes_lead_somewhere() -> None:
    for readme in ROOT.glob("*/README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_bases_are_all_in_use() -> None:
    named = {(path.parent / base[1]).resolve() for path in ROOT.rglob("*.yaml")
             if (base := re.search(r"^base: (\S+)$", path.read_text(), re.MULTILINE))}
    assert set(ROOT.glob("*/eval/base/*.yaml")) <= named
