"""`python -m lavis_lite compare A B`: two runs side by side, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import command_parser, new_file
from lavis_lite.io import atomic
from lavis_lite.report.compare import compare
from lavis_lite.report.compare_text import as_json, page, text


def main(argv: Sequence[str]) -> int:
    """Print what differs, and with --html write it as a page.

    Raises:
        ConfigError: a folder without results, or no split in common.
        DataError: the samples of the runs are not the same.
    """
    arguments = command_parser("compare", "Compare two runs: changed settings, scores with bootstrap confidence "
                               "intervals, samples that flipped.",
                               ["RUN_A RUN_B", "RUN_A RUN_B --split test --html compare.html"])
    arguments.add_argument("a", type=Path, metavar="A", help="a run folder, a folder above runs (the run "
                           "with the newest results is taken), or one results folder")
    arguments.add_argument("b", type=Path, metavar="B", help="another one")
    arguments.add_argument("--split", help="only this split; by default all that both runs have")
    arguments.add_argument("--html", type=new_file, metavar="FILE", help="also write a page")
    arguments.add_argument("--json", action="store_true", help="print all numbers as JSON")
    chosen = arguments.parse_args(list(argv))
    found = compare(chosen.a, chosen.b, chosen.split)
    if chosen.html:
        chosen.html.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(chosen.html, page(found))
    shown = as_json(found) if chosen.json else text(found)
    print(shown.encode("utf-8", "replace").decode("utf-8"))
    return 0
