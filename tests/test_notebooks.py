"""Notebooks run from the first cell to the last in a folder like a checkout, and hold no output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import ROOT, cache, environment  # noqa: F401  (a fixture)

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(book: dict[str, Any]) -> list[str]:
    """The sources of its code cells."""
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:  # noqa: F811
    """The working folder of a notebook: a checkout, without what notebooks leave behind."""
    for name in ("projects", "lavis_lite", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, value in environment(cache, MPLBACKEND="agg").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    """The first in a kernel of its own, with --long all; the others in this process, with trainings of two steps."""
    if path.stem == "first_steps" or request.config.getoption("--long"):
        nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (dev extra)")
        pytest.importorskip("ipykernel", reason="ipykernel is not installed (dev extra)")
        nbformat = pytest.importorskip("nbformat")
        nbclient.NotebookClient(nbformat.read(path, as_version=4), timeout=280,
                                resources={"metadata": {"path": str(workplace)}}).execute()
        return
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code(json.loads(path.read_text()))):
        source = re.sub(r"max_iters(: |=)\d+", r"max_iters\g<1>2", source)
        exec(compile(source, f"{path.name}, code cell {number + 1}", "exec"), names)


def test_notebooks_hold_no_output() -> None:
    books = {path.stem: json.loads(path.read_text()) for path in BOOKS}
    assert set(books) == {"first_steps", "features_and_search", "own_data", "look_inside", "port_from_lavis",
                          "new_connector"}
    kept = [name for name, book in books.items() for cell in book["cells"]
            if cell.get("outputs") or cell.get("execution_count")]
    assert kept == []
