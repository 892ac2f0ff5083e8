"""report.html: one self-contained file to look through an evaluation.

Texts are stored as JSON in an inert script element, with `<`, `>`, `&` and everything but ASCII escaped. They are shown
as text, never as HTML. A content policy allows the page its own script (by hash) and its own pictures. It allows no
network and no script out of a caption. Thumbnails follow the script in inert chunks; an `<img>` is made shortly
before it is visible.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lavis_lite.io import atomic
from lavis_lite.report.curves import Panels, escaped, figures
from lavis_lite.report.sample import Candidate, Picture, ReportSample, finite
from lavis_lite.report.thumbnails import thumbnails

CHUNK = 50
"""thumbnails per chunk"""
BASELINES = ("majority", "chance")
"""beginnings of the names of scores that need no model"""
LONGEST = 2000
"""characters of a text on a page"""


def write_report(path: Path, title: str, scores: Mapping[str, float], samples: Iterable[ReportSample], *,
                 curves: Panels | None = None, facts: Mapping[str, str] | None = None, most: int = 5000,
                 others: Mapping[str, str] | None = None) -> Path:
    """Write a page, atomically.

    Args:
        path: the file; its folder exists.
        title: heading.
        scores: of the whole split, by name.
        samples: of the whole split; of more than `most`, evenly spaced ones are shown.
        curves: of the training, if any.
        facts: other facts by name: model, step, control ...
        most: number of samples on the page.
        others: links to other pages, name -> file name.

    Raises:
        OSError: it could not be written.
    """
    every = list(samples)
    shown = evenly(every, most)
    pictures = _PictureList()
    rows = [_row(sample, pictures) for sample in shown]
    mains = list(dict.fromkeys(next(iter(sample.scores)) for sample in shown if sample.scores))
    chunks, missing = _chunks(pictures.every)
    named = [{"name": name, "value": finite(scores[name]), "baseline": name.startswith(BASELINES)}
             for name in in_order(scores, mains)]
    data = {"scores": named, "samples": rows, "total": len(every), "main": mains[0] if mains else None,
            "chunk": CHUNK, "errors": missing}
    links = "".join(f'<a href="{escaped(quote(file))}">{escaped(name)}</a>' for name, file in (others or {}).items())
    script, style = part("page.js"), part("page.css")
    atomic.write_text(path, filled(part("page.html"), {
        "title": escaped(title), "policy": policy(script, style), "style": style, "script": script,
        "facts": "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(str(value))}</dd></div>"
                         for name, value in (facts or {}).items()),
        "others": f'<nav class="others" aria-label="Other pages">{links}</nav>\n' if links else "",
        "curves": figures(curves or {}), "data": inert(data),
        "chunks": "".join(f'<script type="text/plain" id="chunk{number}">{lines}</script>\n'
                          for number, lines in enumerate(chunks))}))
    return path


def make_newest(page: Path) -> Path:
    """Give a page the second name report.html; a copy if the file system has no hard links."""
    newest = page.with_name("report.html")
    temporary = page.with_name(f".tmp-report.html-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(page, temporary)
    except OSError:
        shutil.copyfile(page, temporary)
    os.replace(temporary, newest)
    return newest


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Sort names of scores: the main ones, then the others, with scores of one kind (by type of question) together.

    Args:
        names: in the task's order.
        first: the main ones; unknown names are skipped.
    """
    left = [name for name in names if name not in first]
    kinds = list(dict.fromkeys(map(_kind, left)))
    return [name for name in first if name in names] + sorted(left, key=lambda name: kinds.index(_kind(name)))


def _kind(name: str) -> str:
    """accuracy_question_color -> accuracy_question; every other name is its own kind."""
    return "_".join(name.split("_")[:2]) if name.startswith(("accuracy_answer_", "accuracy_question_")) else name


def evenly(samples: Sequence[ReportSample], most: int) -> Sequence[ReportSample]:
    """At most `most` samples, evenly spaced."""
    if len(samples) <= most:
        return samples
    return [samples[number * len(samples) // most] for number in range(most)]


class _PictureList:
    """Pictures in order of first appearance, each name once."""

    def __init__(self) -> None:
        self.every: list[Picture] = []
        self._index: dict[str, int] = {}

    def index(self, picture: Picture | None) -> int | None:
        if picture is None:
            return None
        if picture.name not in self._index:
            self._index[picture.name] = len(self.every)
            self.every.append(picture)
        return self._index[picture.name]


def _row(sample: ReportSample, pictures: _PictureList) -> dict[str, Any]:
    """A sample as JSON with short keys, without empty values. The id is text: a browser rounds numbers above 2**53."""
    row = {"i": str(sample.id), "h": _short(sample.context), "p": _short(sample.prompt), "a": _short(sample.prediction),
           "g": sample.group or None, "r": [_short(text) for text in sample.references] or None,
           "ok": sample.right, "k": sample.rank,
           "s": {name: finite(value) for name, value in sample.scores.items()} or None,
           "t": pictures.index(sample.picture),
           "c": [_candidate(one, pictures) for one in sample.candidates] or None}
    return {key: value for key, value in row.items() if value is not None and value != ""}


def _candidate(one: Candidate, pictures: _PictureList) -> dict[str, Any]:
    row = {"x": _short(one.text), "v": None if one.value is None else finite(one.value),
           "w": None if one.share is None else round(one.share, 4), "ok": one.right or None,
           "t": pictures.index(one.picture)}
    return {key: value for key, value in row.items() if value is not None and value != ""}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _chunks(pictures: Sequence[Picture]) -> tuple[list[str], dict[str, str]]:
    """(chunks of CHUNK thumbnails, base64, one per line; index of a picture that cannot be shown -> reason)."""
    made = list(thumbnails(pictures))
    missing = {str(index): _short(one.error) for index, one in enumerate(made) if one.error}
    return ["\n".join(one.data for one in made[start:start + CHUNK]) for start in range(0, len(made), CHUNK)], missing


def inert(data: Any) -> str:
    """JSON that cannot end its script element, whatever its texts are: ASCII without < > &."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str) -> str:
    """Text of a file in the folder `page`."""
    return (resources.files("lavis_lite.report") / "page" / name).read_text(encoding="utf-8")


def policy(script: str, style: str) -> str:
    """The content policy of a page: it may run this script, use this style, and show its own pictures."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
              for text in (script, style)]
    return (f"default-src 'none'; img-src data:; script-src 'sha256-{hashed[0]}'; style-src 'sha256-{hashed[1]}'; "
            "base-uri 'none'; form-action 'none'")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with each `{{name}}` replaced by its part; parts are not searched for names.

    Raises:
        KeyError: a name has no part.
    """
    pieces = template.split("{{")
    out = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        out += [parts[name], rest]
    return "".join(out)
