"""A self-contained page without scripts: sections with tables, paragraphs and pictures, in the style of report.html."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

from lavis_lite.report.page import escaped, framed

Cells = Sequence[str]


def static_page(heading: str, body: str, facts: Mapping[str, str] | None = None) -> str:
    """A page as HTML.

    Args:
        heading: also the title.
        body: HTML, from the functions below.
        facts: under the heading, name -> value.
    """
    return framed(heading, f"<main>{body}</main>\n", facts or {}, kind="comparison")


def section(heading: str, content: str) -> str:
    """A panel with a heading; `content` is HTML."""
    return f'<section class="panel part"><h2>{escaped(heading)}</h2>{content}</section>'


def paragraph(content: str) -> str:
    """A paragraph of text; "" for no text."""
    return f'<p class="count">{escaped(content)}</p>' if content else ""


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """A table of texts; without rows, the word "nothing"."""
    def row(cells: Cells, tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escaped(cell)}</{tag}>' for cell in cells)}</tr>"

    found = list(rows)
    if not found:
        return paragraph("nothing")
    body = "".join(row(cells, "td") for cells in found)
    whole = f'<table class="plain"><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{whole}</div>'


def picture(png: bytes, alternative: str) -> str:
    """A PNG as part of the page."""
    data = base64.b64encode(png).decode("ascii")
    return f'<div class="scroll"><img alt="{escaped(alternative)}" src="data:image/png;base64,{data}"></div>'
