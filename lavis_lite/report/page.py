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
import html
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from lavis_lite.datasets.media.images import MAX_PIXELS, BadSample, decode_rgb
from lavis_lite.errors import DataError
from lavis_lite.io import atomic
from lavis_lite.processors.image import to_rgb
from lavis_lite.report.sample import Candidate, Picture, ReportSample, finite

# --- thumbnails -------------------------------------------------------------------------------------------------------
BUDGET = 36 * 2**20
"""bytes of base64 for all thumbnails of a page"""
MOST_BYTES = 24 * 1024
SIDES = ((600, 320), (2000, 240))
"""up to this number of pictures -> pixels of the longer side; for more pictures: SMALL"""
SMALL = 160
QUALITIES = (82, 68, 52, 36, 20)
_AT_ONCE = 64
"""pictures in memory at once"""


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as base64, or the reason why it is missing."""

    data: str = ""
    error: str = ""


def thumbnails(pictures: Sequence[Picture], budget: int = BUDGET) -> Iterator[Thumbnail]:
    """One thumbnail per picture, in order. Files are read one after the other; several threads make the pictures.

    Args:
        pictures: all pictures of a page, each once.
        budget: bytes of base64 for all of them.
    """
    most = min(MOST_BYTES, budget * 3 // 4 // max(len(pictures), 1))
    side = next((pixels for count, pixels in SIDES if len(pictures) <= count), SMALL)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pictures), _AT_ONCE):
            loaded = [_load(picture) for picture in pictures[start:start + _AT_ONCE]]
            yield from pool.map(lambda one: _made(one, side, most), loaded)


def _load(picture: Picture) -> tuple[str, bytes | Image.Image | str]:
    """(name, content), or (name, the reason why it is missing)."""
    try:
        return picture.name, picture.load()
    except DataError as error:
        return picture.name, str(error)


def _made(loaded: tuple[str, bytes | Image.Image | str], side: int, most: int) -> Thumbnail:
    name, content = loaded
    if isinstance(content, str):
        return Thumbnail(error=content)
    try:
        image = _decoded(content, name, side) if isinstance(content, bytes) else content
    except DataError as error:
        return Thumbnail(error=str(error))
    return Thumbnail(base64.b64encode(jpeg(image, side, most)).decode("ascii"))


def _decoded(content: bytes, name: str, side: int) -> Image.Image:
    """An upright RGB image of at least `side` pixels, if the file has them; large JPEGs are decoded at half size."""
    if content[:2] != b"\xff\xd8":
        return decode_rgb(content, name)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadSample(name, "has too many pixels")
            image.draft("RGB", (side, side))
            image.load()
            return to_rgb(image)
    except OSError:  # an unusual JPEG; the other reader is more tolerant
        return decode_rgb(content, name)


def jpeg(image: Image.Image, side: int, most: int) -> bytes:
    """A JPEG of at most `side` pixels and, if possible, `most` bytes. First the quality is lowered, then the size."""
    small = image.convert("RGB")
    while True:
        small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        for quality in QUALITIES:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=quality)
            if stream.tell() <= most:
                return stream.getvalue()
        if side <= 48:
            return stream.getvalue()
        side = side * 3 // 4


# --- curves -----------------------------------------------------------------------------------------------------------
Series = tuple[Sequence[float], Sequence[float]]
"""(steps, values)"""
Panels = Mapping[str, Mapping[str, Series]]
"""panel title -> name of a curve -> its points"""

WIDTH, HEIGHT = 560, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 24
MOST_POINTS = 400
COLOURS = 6
"""classes c0 ... c5 of the style sheet"""


def escaped(text: str) -> str:
    """Text escaped for HTML; half of a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def figures(panels: Panels) -> str:
    """One `<figure>` per panel that has points."""
    return "".join(_figure(title, clean) for title, curves in panels.items() if (clean := _finite(curves)))


def _finite(curves: Mapping[str, Series]) -> dict[str, Series]:
    kept = {}
    for name, (steps, values) in curves.items():
        pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        if pairs:
            kept[name] = _thinned([step for step, _ in pairs], [value for _, value in pairs])
    return kept


def _thinned(steps: Sequence[float], values: Sequence[float]) -> Series:
    """At most MOST_POINTS points, with the last one."""
    stride = -(-len(steps) // MOST_POINTS)
    kept = sorted({*range(0, len(steps), stride), len(steps) - 1})
    return [steps[index] for index in kept], [values[index] for index in kept]


def _figure(title: str, curves: Mapping[str, Series]) -> str:
    xs, ys = ([value for series in curves.values() for value in series[axis]] for axis in (0, 1))
    y_ticks = ticks(min(ys), max(ys), 4)
    x_range, x_ticks = (min(xs), max(xs)), ticks(min(xs), max(xs), 5)
    if min(xs) == max(xs):  # one step: in the middle, under its own number
        x_range, x_ticks = (xs[0] - 1, xs[0] + 1), [xs[0]]
    y_range = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def point(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)
        y = TOP + (y_range[1] - value) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_grid_line(point(x_range[0], tick)[1], tick) for tick in y_ticks]
    parts += [_column(point(tick, y_range[0])[0], tick) for tick in x_ticks if x_range[0] <= tick <= x_range[1]]
    parts += [_line(number, [point(*pair) for pair in zip(*series, strict=True)])
              for number, series in enumerate(curves.values())]
    names = "".join(f'<li class="c{number % COLOURS}">{escaped(name)}</li>' for number, name in enumerate(curves))
    label = escaped(f"{title} over optimizer steps")
    return (f'<figure class="curve"><figcaption>{escaped(title)}<ul class="legend">{names}</ul></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>')


def _grid_line(y: float, value: float) -> str:
    return (f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5}" text-anchor="end">{value:.4g}</text>')


def _column(x: float, value: float) -> str:
    return f'<text class="tick" x="{x}" y="{HEIGHT - 6}" text-anchor="middle">{value:,.0f}</text>'


def _line(number: int, points: Sequence[tuple[float, float]]) -> str:
    colour = f"c{number % COLOURS}"
    if len(points) == 1:
        return f'<circle class="dot {colour}" cx="{points[0][0]}" cy="{points[0][1]}" r="3"/>'
    return f'<polyline class="line {colour}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span [low, high], about `about` of them and at least two."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


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
    script = part("page.js")
    content = filled(part("samples.html"), {
        "script": script, "curves": figures(curves or {}), "data": inert(data),
        "chunks": "".join(f'<script type="text/plain" id="chunk{number}">{lines}</script>\n'
                          for number, lines in enumerate(chunks))})
    nav = f'<nav class="others" aria-label="Other pages">{links}</nav>\n' if links else ""
    atomic.write_text(path, framed(title, content, facts or {}, script, nav))
    return path


def framed(title: str, content: str, facts: Mapping[str, Any], script: str = "", others: str = "",
           kind: str = "") -> str:
    """A page around its content.

    Args:
        title: also the heading.
        content: HTML after the heading.
        facts: under the heading, name -> value.
        script: the only one that the page may run.
        others: HTML of links to other pages.
        kind: class of the body.
    """
    style = part("page.css")
    return filled(part("frame.html"), {
        "title": escaped(title), "policy": policy(script, style), "style": style, "content": content, "others": others,
        "kind": f' class="{kind}"' if kind else "",
        "facts": "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(str(value))}</dd></div>"
                         for name, value in facts.items())})


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
           "c": [_candidate(one, pictures) for one in sample.candidates] or None,
           "w": [_candidate(one, pictures) for one in sample.attention] or None}
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
