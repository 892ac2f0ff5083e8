"""docs/design.md against the tree: every room, folder and module has its purpose, every kind its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lavis_lite.registry import Registry, registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lavis_lite"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def section(title: str) -> str:
    """The text below a heading, up to the next one of the same level."""
    return DESIGN.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows() -> dict[str, str]:
    """Room -> its purpose, from the table of rooms."""
    table = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \| (.+) \|$", section("The rooms"), re.MULTILINE)
    return {room: purpose for names, purpose in table for room in re.findall(r"`([^`]+)`", names)}


def test_the_table_has_every_room_once() -> None:
    rooms = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    rooms |= {f"{folder.name}/" for folder in FOLDERS if folder.parent == PACKAGE}
    assert set(rows()) == rooms


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder.parents[0] not in (PACKAGE, ROOT)],
                         ids=lambda folder: folder.name)
def test_the_row_of_a_room_names_its_folders(folder: Path) -> None:
    assert f"`{folder.name}/`" in rows()[f"{folder.parent.name}/"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_folder_says_what_it_is_for(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(text.split()) >= 5 and not text.lower().startswith("see ")


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")
              if len((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split()) < 4]
    assert silent == []


def test_the_kinds_of_the_registry_are_named() -> None:
    kinds = re.search(r"\*\*Registry\.\*\* Kinds: ([\w, ]+)\.", DESIGN.replace("\n", " "))
    assert kinds and set(kinds[1].split(", ")) == {
        name for name, value in vars(registry).items() if isinstance(value, Registry)}
