"""report.html: one file with everything in it, for a person to look through what a model said.

Texts travel as JSON in an inert script element with every `<`, `>`, `&` and all that is not ASCII written as escapes,
and are put in place as text, never as HTML. A content policy lets the page run its own script (by hash) and show
pictures from within itself, and nothing else: no network, no script that came in with a caption. Thumbnails lie behind
the script in inert chunks; an `<img>` is made when its place comes near the screen.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
"""what names of scores begin with that need no model"""
LONGEST = 2000
"""characters of a text that a page shows"""


def write_report(path: Path, title: str, scores: Mapping[str, float], samples: Iterable[ReportSample], *,
                 curves: Panels | None = None, facts: Mapping[str, str] | None = None, most: int = 5000,
                 others: Mapping[str, str] | None = None) -> Path:
    """Write a page; the file is the old one or the new one, also after a crash.

    Args:
        path: the file; its folder exists.
        title: heading.
        scores: of the whole split, by name.
        samples: all of it; of more than `most`, evenly spaced ones are shown.
        curves: of the training, if any.
        facts: what else to say, by name: model, step, control ...
        most: samples on the page.
        others: pages beside this one, name -> file name.

    Raises:
        OSError: it could not be written.
    """
    every = list(samples)
    shown = evenly(every, most)
    pictures = _Pictures()
    rows = [_row(sample, pictures) for sample in shown]
    mains = list(dict.fromkeys(next(iter(sample.scores)) for sample in shown if sample.scores))
    data = {"scores": [_score(name, scores[name]) for name in in_order(scores, mains)], "samples": rows,
            "total": len(every), "main": mains[0] if mains else None, "chunk": CHUNK}
    chunks, faults = _chunks(pictures.every)
    data["faults"] = faults
    parts = {"facts": _facts(facts or {}), "others": _others(others or {}), "curves": figures(curves or {})}
    atomic.write_text(path, _page(title, parts, data, chunks))
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
    """Names of scores as a person wants them: the main ones, then the others, parts of one kind (by type) together.

    Args:
        names: as the task has them.
        first: the main ones; those that are none of the names are left out.
    """
    left = [name for name in names if name not in first]
    kinds = list(dict.fromkeys(map(_kind, left)))
    return [name for name in first if name in names] + sorted(left, key=lambda name: kinds.index(_kind(name)))


def _kind(name: str) -> str:
    """accuracy_question_color -> accuracy_question; other names are a kind of their own."""
    return "_".join(name.split("_")[:2]) if name.startswith(("accuracy_answer_", "accuracy_question_")) else name


def evenly(samples: Sequence[ReportSample], most: int) -> Sequence[ReportSample]:
    """At most so many, evenly spaced over all."""
    if len(samples) <= most:
        return samples
    return [samples[number * len(samples) // most] for number in range(most)]


def _score(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": finite(value), "baseline": name.startswith(BASELINES)}


class _Pictures:
    """Pictures in order of first appearance, each name once."""

    def __init__(self) -> None:
        self.every: list[Picture] = []
        self._place: dict[str, int] = {}

    def place(self, picture: Picture | None) -> int | None:
        if picture is None:
            return None
        if picture.name not in self._place:
            self._place[picture.name] = len(self.every)
            self.every.append(picture)
        return self._place[picture.name]


def _row(sample: ReportSample, pictures: _Pictures) -> dict[str, Any]:
    """A sample under short names, without what it does not have.

    The id is text: a browser would round numbers above 2**53.
    """
    row = {"i": str(sample.id), "h": _short(sample.context), "p": _short(sample.prompt), "a": _short(sample.prediction),
           "g": sample.group or None, "r": [_short(text) for text in sample.references] or None,
           "ok": sample.right, "k": sample.rank,
           "s": {name: finite(value) for name, value in sample.scores.items()} or None,
           "t": pictures.place(sample.picture),
           "c": [_candidate(one, pictures) for one in sample.candidates] or None}
    return {key: value for key, value in row.items() if value is not None and value != ""}


def _candidate(one: Candidate, pictures: _Pictures) -> dict[str, Any]:
    row = {"x": _short(one.text), "v": None if one.value is None else finite(one.value),
           "w": None if one.share is None else round(one.share, 4), "ok": one.right or None,
           "t": pictures.place(one.picture)}
    return {key: value for key, value in row.items() if value is not None and value != ""}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _chunks(pictures: Sequence[Picture]) -> tuple[list[str], dict[str, str]]:
    """(base64 of CHUNK thumbnails each, one per line; place of a picture that cannot be shown -> why)."""
    lines, faults = [], {}
    for place, made in enumerate(thumbnails(pictures)):
        lines.append(made.data)
        if made.fault:
            faults[str(place)] = _short(made.fault)
    return ["\n".join(lines[start:start + CHUNK]) for start in range(0, len(lines), CHUNK)], faults


def inert(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts are: plain ASCII without < > &."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str) -> str:
    """Text of a file of the page."""
    return (resources.files("lavis_lite.report") / "page" / name).read_text(encoding="utf-8")


def policy(script: str, style: str) -> str:
    """What a page may do: run this script, use this style, show pictures it has in itself."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
              for text in (script, style)]
    return (f"default-src 'none'; img-src data:; script-src 'sha256-{hashed[0]}'; style-src 'sha256-{hashed[1]}'; "
            "base-uri 'none'; form-action 'none'")


def _page(title: str, parts: Mapping[str, str], data: Mapping[str, Any], chunks: Sequence[str]) -> str:
    script, style = part("page.js"), part("page.css")
    known = {**parts, "title": escaped(title), "policy": policy(script, style), "style": style, "script": script,
             "data": inert(data), "chunks": "".join(_elements(chunks))}
    return filled(part("page.html"), known)


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(str(value))}</dd></div>"
                   for name, value in facts.items())


def _others(pages: Mapping[str, str]) -> str:
    links = "".join(f'<a href="{escaped(quote(file))}">{escaped(name)}</a>' for name, file in pages.items())
    return f'<nav class="others" aria-label="Other pages">{links}</nav>\n' if links else ""


def _elements(chunks: Sequence[str]) -> Iterator[str]:
    for number, lines in enumerate(chunks):
        yield f'<script type="text/plain" id="chunk{number}">{lines}</script>\n'


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with each `{{name}}` replaced once; what is put in is not looked at again.

    Raises:
        KeyError: a name has no part.
    """
    pieces = template.split("{{")
    out = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        out += [parts[name], rest]
    return "".join(out)
