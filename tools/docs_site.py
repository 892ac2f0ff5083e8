"""Hooks of the documentation site (mkdocs.yml): pages from docstrings, and links that leave `docs/`.

The pages are written for a checkout, so they link to recipes and files of the repository. The site has no such files:
there the link becomes its text and the path.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
API = {
    "Loading models": ["lavis_lite.zoo.catalogue", "lavis_lite.conversation"],
    "Contracts": ["lavis_lite.models.protocols", "lavis_lite.datasets.protocols", "lavis_lite.registry"],
    "Models": ["lavis_lite.models.base", "lavis_lite.models.outputs", "lavis_lite.models.blip2.stage1",
               "lavis_lite.models.blip2.llm"],
    "Data sets": ["lavis_lite.datasets.base", "lavis_lite.datasets.load", "lavis_lite.datasets.builders.base"],
    "Tasks and training": ["lavis_lite.tasks.base", "lavis_lite.runners.hooks", "lavis_lite.engine"],
    "Metrics": ["lavis_lite.metrics.captions", "lavis_lite.metrics.vqa", "lavis_lite.metrics.ranking"],
    "Configuration": ["lavis_lite.config.compose", "lavis_lite.config.recipes", "lavis_lite.registry",
                      "lavis_lite.errors"],
}
"""page -> the modules of which it shows every public docstring"""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def api_pages() -> dict[str, str]:
    """Path of a page -> its text: a directive of mkdocstrings for each module."""
    return {f"api/{title.lower().replace(' ', '_')}.md": "\n\n".join([f"# {title}", *(f"::: {one}" for one in modules)])
            for title, modules in API.items()}


def inside(text: str, page: str) -> str:
    """The text of a page below docs/, its links to files outside of docs/ replaced by text and path."""
    def replaced(match: re.Match[str]) -> str:
        parts: list[str] = []
        for part in (PurePosixPath("docs") / PurePosixPath(page).parent / match[2]).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        if parts[:1] == ["docs"]:
            return match[0]
        path = "/".join(parts)
        return f"`{path}`" if match[1].strip("`") == path else f"{match[1]} (`{path}`)"

    return _LINK.sub(replaced, text)


def on_config(config: Any) -> Any:
    """Add the pages from docstrings to the navigation, in front of the design."""
    at = next(number for number, entry in enumerate(config.nav) if "Design" in entry)
    config.nav.insert(at, {"API": list(api_pages())})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from docstrings."""
    from mkdocs.structure.files import File

    for path, text in api_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave docs/."""
    return inside(markdown, page.file.src_uri)
