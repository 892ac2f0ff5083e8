"""The documentation site: it builds with strict links, and shows every page and the public docstrings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import docs_site

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (docs extra)")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (docs extra)")
    out = tmp_path_factory.mktemp("site")
    result = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", out], cwd=ROOT,
                            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.mark.slow
def test_it_builds_and_shows_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages |= {name.removesuffix(".md") for name in docs_site.api_pages()}
    built = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    assert {name.removesuffix("index") or "." for name in pages} - built == set()
    home = (site / "index.html").read_text()
    assert [name for name in pages - {"index"} if f'href="{name}/"' not in home] == [], "not in the navigation"


@pytest.mark.slow
def test_it_has_the_docstrings(site: Path) -> None:
    page = (site / "api" / "loading_models" / "index.html").read_text()
    assert 'id="lavis_lite.zoo.catalogue.load_model_and_preprocess"' in page
    assert "quantization" in page and "a torch.device" in page


def test_links_that_leave_the_site_become_text() -> None:
    text = "[a](../../projects/blip2/README.md#x) [b](training.md) [`c`](../../c/d.py)"
    assert docs_site.inside(text, "guide/p.md") == (
        "a (`projects/blip2/README.md`) [b](training.md) `c` (`c/d.py`)")
    assert docs_site.inside("[up](../index.md)", "guide/p.md") == "[up](../index.md)"


def test_modules_with_a_page_exist() -> None:
    for name in (one for modules in docs_site.API.values() for one in modules):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_the_navigation_names_guides_by_role() -> None:
    titles = [next(iter(entry)) for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]]
    assert titles == ["Home", "Getting started", "Your own data", "Large experiments", "Extending", "From LAVIS",
                      "Reference", "Design", "Evidence"]
