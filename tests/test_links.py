"""Links of the documentation: every relative link and anchor resolves, and the index names every page once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "projects").rglob("*.md"),
                ROOT / "benchmarks" / "README.md", *(ROOT / "examples").rglob("*.md"),
                *(ROOT / "lavis_lite" / "assets").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
PATH = re.compile(r"(?:lavis_lite|benchmarks|tools)(?:\.\w+)+|"
                  r"(?:lavis_lite|tests|benchmarks|projects|run_scripts|tools|examples|docs)/[\w./-]+")
NAMED = re.compile(r"\bdocs/[\w./-]+\.(?:md|png)")


def prose(page: Path) -> str:
    """A page without its code blocks and code spans."""
    return CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most renderers make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_the_index_names_every_page_once() -> None:
    links = [link for link in LINK.findall(prose(DOCS / "index.md")) if "#" not in link and not link.startswith("..")]
    assert sorted(set(links)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
                                        if page.name != "index.md")
    rows = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\) \| .+ \|$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows)) == len(set(links)) - 1  # design.md is named in a sentence


def test_pages_that_code_names_exist() -> None:
    """Messages, docstrings and scripts name pages by their path in the repository."""
    sources = [path for folder in ("lavis_lite", "tests", "benchmarks", "tools", "examples", "run_scripts", "projects")
               for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".md")]
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in sources if path != Path(__file__).resolve()
             for name in NAMED.findall(path.read_text(encoding="utf-8")) if not (ROOT / name).is_file()]
    assert wrong == []


def exists(name: str) -> bool:
    """Whether a path of the repository, or a dotted name such as `lavis_lite.io.files.register_handler`, is there."""
    if "/" in name:
        return (ROOT / name).exists()
    *parents, last = name.split(".")
    folder = ROOT.joinpath(*parents)
    if (folder / last).is_dir() or (folder / f"{last}.py").is_file():
        return True
    source = folder.with_suffix(".py") if folder.with_suffix(".py").is_file() else folder / "__init__.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    return bool(re.search(rf"^(?:def |class |from .* import .*|    \"){last}\b", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_pages_name_exists(page: Path) -> None:
    words = [word.strip("`,;:()") for span in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
             for word in span.split()]
    names = [word for word in words if PATH.fullmatch(word) and "/NAME" not in word]
    assert [name for name in names if not exists(name)] == []


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("lavis_lite.io.files.register_handler") and exists("lavis_lite/io") and exists("lavis_lite.io.files")
    gone = ("lavis_lite.io.files.register_hand", "lavis_lite.files", "lavis_lite.list_model", "tests/no.py",
            "benchmarks.rerank")
    assert [name for name in gone if exists(name)] == [] and exists("lavis_lite.list_models")


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title: `x`\n[a](other.md) [b](#a-title-x) [c](#nothing) [d](https://example.org/x)\n"
                    "```text\n[e](nowhere.md)\n```\n`[f](nowhere.md)`\n")
    assert broken(page) == ["other.md", "#nothing"]
