"""The generated pages of docs/reference equal what the source gives; `python -m tools.reference_pages` writes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tools import reference_pages
from tools.reference_pages import FOLDER, PAGES, field_docs, one_line, table


@dataclass
class Section:
    """A section."""

    length: int = 8
    """tokens"""
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=lambda: ["train"])
    mode: str | None = None
    path: str = "a"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), f"docs/reference/{name} is old; run: python -m tools.reference_pages"


def test_fields_are_read_with_default_and_meaning() -> None:
    assert field_docs(Section) == {
        "length": ("int", "8", "tokens"), "names": ("list[str]", "[]", ""), "splits": ("list[str]", "['train']", ""),
        "mode": ("str | None", "null", ""), "path": ("str", "a", "")}


def test_a_cell_with_a_pipe_stays_one_cell() -> None:
    assert table(("a",), [("x | y",)]).splitlines()[-1] == "| x \\| y |"


def test_the_first_paragraph_is_one_line() -> None:
    assert one_line("Does a thing\n    over two lines.\n\n    More.") == "Does a thing over two lines."


def test_every_command_has_a_section() -> None:
    page = (FOLDER / "commands.md").read_text(encoding="utf-8")
    for name in (*reference_pages.main.COMMANDS, *(f"data {name}" for name in reference_pages.data.COMMANDS)):
        assert name == "data" or f"\n## {name}\n" in page
