"""A page opened in a real Chromium without a window: what its document has become."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
                None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package chromium)")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")


def opened(page: Path, view: str = "", width: int = 1000, height: int = 800, budget: int = 3000) -> str:
    """The document as HTML after the page has settled; `view` is what stands behind # in the address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}",
                   f"--virtual-time-budget={budget}", "--dump-dom", f"{page.resolve().as_uri()}#{view}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Document(HTMLParser):
    """Elements of a dumped document, by what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[str] = []
        self.images = self.holders = 0
        self.root: dict[str, str | None] = {}
        self.found = -1
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        names = (known.get("class") or "").split()
        self.tags.append(tag)
        if tag == "html":
            self.root = known
        if "card" in names:
            self.cards.append(str(known.get("data-id")))
        self.holders += "pic" in names
        self.images += tag == "img"
        if known.get("id") == "count":
            self.found = int(known.get("data-found") or -1)


def text_of(dom: str) -> str:
    """The document's words, without its scripts."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL))
