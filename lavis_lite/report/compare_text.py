"""A comparison as text for a console, as JSON, and as a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lavis_lite.report.bootstrap import FEWEST
from lavis_lite.report.compare import Comparison, Flip, SplitComparison, main_score
from lavis_lite.report.page import in_order
from lavis_lite.report.static_page import paragraph, section, static_page, table

SHOWN, SHOWN_ON_PAGE = 5, 200
"""flipped samples in each direction"""
WIDTH = 120
"""most characters of a sample on one line; a longer one takes several lines"""
SAME = "Every sample has the same score in both."
Cells = Sequence[str]
STAR = "* the interval does not contain 0; by chance, this happens to one in twenty scores that do not differ"
FEW = f"scores of fewer than {FEWEST} pictures decide nothing: their intervals are too narrow"
HEAD = ("score", "A", "B", "B - A", "95 % interval", "B above A")


def text(found: Comparison) -> str:
    """The comparison as text, as `compare` prints it."""
    lines = [f"A  {found.a}", f"B  {found.b}", ""]
    lines += ["What changed:" if found.config else "The configurations are the same."]
    lines += _aligned([(f"  {key}", _value(a), "->", _value(b)) for key, (a, b) in found.config.items()])
    for split in found.splits:
        lines += ["", heading_of(split), *weight_lines(split)]
        lines += _aligned([HEAD, *score_rows(split)], right=(1, 2, 3))
        lines += [split.note] if split.note else []
        lines += [STAR] if any(one.differ for one in split.intervals.values()) else []
        lines += [FEW] if any(one.groups < FEWEST for one in split.intervals.values()) else []
        lines += ["", SAME] if _same(split) else []
        for heading, flips in flip_lists(split):
            lines += ["", f"{heading}: {len(flips)}{_legend(flips)}"]
            lines += [f"  {line}" for flip in flips[:SHOWN] for line in _lines(flip)]
            lines += [f"  ... and {len(flips) - SHOWN} more (--html shows {_most_shown(flips)})"] \
                if len(flips) > SHOWN else []
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def weight_lines(split: SplitComparison) -> list[str]:
    """The sources of both runs' weights, as far as known."""
    return [f"{letter} weights: {weights}" for letter, weights in zip("AB", split.weights, strict=True) if weights]


def _same(split: SplitComparison) -> bool:
    return bool(split.samples) and not (split.gained or split.lost)


def heading_of(split: SplitComparison) -> str:
    """Split, steps, and the number of samples behind the intervals."""
    a, b = split.steps
    steps = f"step {a}" if a == b else f"step {a} in A, {b} in B"
    return f"{split.split}, {steps}" + (f", {split.samples:,} samples" if split.samples else "")


def _legend(flips: Sequence[Flip]) -> str:
    texts = any("prediction" in flip.a for flip in flips)
    return " (A's text -> B's text, references)" if texts else " (A -> B, references)" if flips else ""


def _most_shown(flips: Sequence[Flip]) -> str:
    return "them" if len(flips) <= SHOWN_ON_PAGE else f"{SHOWN_ON_PAGE} of them"


def flip_lists(split: SplitComparison) -> list[tuple[str, Sequence[Flip]]]:
    """(heading, samples) in both directions, if samples differ."""
    judged = any("right" in flip.a for flip in (*split.gained, *split.lost))
    names = ("B right, A wrong", "A right, B wrong") if judged else ("B's score is higher", "A's score is higher")
    return [(names[0], split.gained), (names[1], split.lost)] if split.gained or split.lost else []


def score_rows(split: SplitComparison) -> list[Cells]:
    """One row per score: first those with an interval, then those of the whole split alone."""
    rows: list[Cells] = []
    for name in in_order(split.intervals, []):
        one = split.intervals[name]
        d = one.difference
        rows.append((name, f"{one.a.mean:.4f}", f"{one.b.mean:.4f}", f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}",
                     f"{one.better:.1%}{' *' if one.differ else ''}"))
    for name, (a, b) in split.metrics.items():
        if name not in split.intervals:
            change = "" if a is None or b is None else f"{b - a:+.4f}"
            rows.append((name, *("-" if value is None else f"{value:.4f}" for value in (a, b)), change, "", ""))
    return rows


def _aligned(rows: Sequence[Cells], right: Sequence[int] = ()) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) if column in right else cell.ljust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def _value(value: Any) -> str:
    shown = "-" if value is None else value if value and isinstance(value, str) else json.dumps(value, default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _lines(flip: Flip) -> list[str]:
    """One sample on one line, or its long texts on separate lines."""
    prompt, answers = _one_line(flip.a.get("prompt", "")), [_answer(row) for row in (flip.a, flip.b)]
    references = [_one_line(text) for text in flip.a.get("references", [])[:2]]
    shown = f"({', '.join(references)})" if references else ""
    parts = str(flip.a["id"]), prompt, " -> ".join(map(repr, answers)), shown
    line = "  ".join(part for part in parts if part)
    if len(line) <= WIDTH:
        return [line]
    texts = [("A", answers[0]), ("B", answers[1]), *(("reference", text) for text in references)]
    return ["  ".join(part for part in parts[:2] if part), *(f"  {name:9}  {text}" for name, text in texts)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _answer(row: dict[str, Any]) -> str:
    if "prediction" in row:
        return _one_line(row["prediction"])
    if "rank" in row:
        return f"rank {row['rank']}" if row["rank"] else "not found"
    score = main_score(row)
    return "-" if score is None else f"{score:.3f}"


def as_json(found: Comparison) -> str:
    """All numbers, and the ids of flipped samples, as JSON."""
    splits = [{"split": split.split, "steps": split.steps, "weights": split.weights, "samples": split.samples,
               "metrics": split.metrics, "note": split.note or None,
               "intervals": {name: dataclasses.asdict(one) for name, one in split.intervals.items()},
               **{name: [flip.a["id"] for flip in flips] for name, flips in
                  (("gained", split.gained), ("lost", split.lost))}} for split in found.splits]
    return json.dumps({"a": str(found.a), "b": str(found.b), "config": found.config, "splits": splits,
                       "notes": found.notes}, indent=1, default=str)


def page(found: Comparison) -> str:
    """The comparison as one self-contained page without scripts."""
    body = [section("What changed", table(
        ("key", "A", "B"), [(key, _value(a), _value(b)) for key, (a, b) in found.config.items()]))]
    for split in found.splits:
        body.append(section(heading_of(split), "".join(map(paragraph, weight_lines(split)))
                             + table(HEAD, score_rows(split)) + paragraph(split.note or STAR)
                             + paragraph(SAME if _same(split) else "")))
        for heading, flips in flip_lists(split):
            more = f"{len(flips) - SHOWN_ON_PAGE} more are not shown" if len(flips) > SHOWN_ON_PAGE else ""
            body.append(section(f"{heading}: {len(flips)}", _flips(flips[:SHOWN_ON_PAGE]) + paragraph(more)))
    body += [paragraph(note) for note in found.notes]
    return static_page("Two runs", "".join(body), {"A": str(found.a), "B": str(found.b)})


def _flips(flips: Sequence[Flip]) -> str:
    rows = [(str(flip.a["id"]), flip.a.get("prompt", ""), _answer(flip.a), _answer(flip.b),
             "\n".join(flip.a.get("references", []))) for flip in flips]
    return table(("id", "prompt", "A", "B", "references"), rows)
