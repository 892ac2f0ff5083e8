"""The findings of ablations as a page, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lavis_lite.lab.findings import Summary
from lavis_lite.report.static_page import paragraph, picture, section, static_page, table

INTERVALS = ("Mean over the seeds ± half of the 95% confidence interval (Student's t). Directions compare runs seed by "
             "seed.")


def page(summaries: Sequence[Summary], figures: Mapping[str, Path]) -> str:
    """One self-contained page.

    Args:
        summaries: in the order of the page.
        figures: ablation -> PNG.
    """
    body = [_overview(summaries)] if len(summaries) > 1 else []
    for summary in summaries:
        one = summary.ablation
        shown = picture(figures[one.name].read_bytes(), one.title) if one.name in figures else ""
        body.append(section(one.title, "".join([
            paragraph(one.paper), paragraph(one.note), table(*summary.table()), shown,
            *(paragraph(finding.sentence()) for finding in summary.findings), paragraph(origin(summary))])))
    return static_page("Laboratory", "".join([*body, paragraph(INTERVALS)]))


def _overview(summaries: Sequence[Summary]) -> str:
    rows = [(summary.ablation.name, finding.expected.score, f"{finding.expected.better} over {finding.expected.than}",
             str(finding.difference or "-"), finding.verdict) for summary in summaries for finding in summary.findings]
    return section("Overview", table(("ablation", "score", "direction", "difference", "verdict"), rows))


def origin(summary: Summary) -> str:
    """Seeds and dates of the runs."""
    if not summary.seeds:
        return "Not run."
    dates = summary.dates[0] if len(summary.dates) == 1 else f"{summary.dates[0]} to {summary.dates[-1]}"
    return f"Seeds {', '.join(map(str, summary.seeds))}; {dates}."


def markdown(summary: Summary, heading: str = "###") -> str:
    """An ablation as Markdown: title, the paper's result, table, what was found."""
    head, rows = summary.table()
    lines = [f"{heading} {summary.ablation.title}", "",
             f"`python -m lavis_lite lab {summary.ablation.name}`. {' '.join(summary.ablation.paper.split())}", ""]
    if summary.ablation.note:
        lines += [" ".join(summary.ablation.note.split()), ""]
    if summary.seeds:
        lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
        lines += ["", *(f"- {finding.sentence()}" for finding in summary.findings), ""]
    return "\n".join([*lines, origin(summary)])
