"""The generated pages of docs/reference equal what the source gives; `python -m tools.reference_pages` writes them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field

from tests.helpers.processes import run_processes
from tools import reference_pages
from tools.reference_pages import FOLDER, field_docs, one_line, table


@dataclass
class Section:
    """A section."""

    length: int = 8
    """tokens"""
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=lambda: ["train"])
    mode: str | None = None
    path: str = "a"


def differences() -> str:
    """What the check prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = reference_pages.run(["--check"])
    assert code == bool(said.getvalue())
    return said.getvalue()


def test_the_pages_are_current() -> None:
    """In a process of its own: other tests register classes of theirs."""
    [found] = run_processes(differences, 1, timeout=280)
    assert found == "", f"{found}run: python -m tools.reference_pages"


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
