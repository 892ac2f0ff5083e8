"""`python -m lavis_lite compare A B`: two runs side by side, with bootstrap confidence intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import program
from lavis_lite.errors import ConfigError
from lavis_lite.io import atomic
from lavis_lite.report.compare import compare
from lavis_lite.report.compare_text import as_json, page, text


def main(argv: Sequence[str]) -> int:
    """Print what differs; write it as a page too if asked.

    Raises:
        ConfigError: a folder without results, no split in common, or the page cannot be written.
        DataError: the samples of the runs are not the same.
    """
    arguments = argparse.ArgumentParser(program("compare"), description="Two runs side by side: what changed, scores "
                                        "with bootstrap confidence intervals, samples that flipped.")
    arguments.add_argument("a", type=Path, metavar="A", help="a run folder, a folder above runs (the one with the "
                                                             "newest results), or one results folder")
    arguments.add_argument("b", type=Path, metavar="B", help="another one")
    arguments.add_argument("--split", help="only this split; by default all that both have")
    arguments.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    arguments.add_argument("--json", action="store_true", help="print all numbers as JSON")
    chosen = arguments.parse_args(list(argv))
    found = compare(chosen.a, chosen.b, chosen.split)
    if chosen.html:
        try:
            atomic.write_text(chosen.html, page(found))
        except OSError as fault:
            raise ConfigError(f"--html {chosen.html} cannot be written: {fault}") from fault
    words = as_json(found) if chosen.json else text(found)
    print(words.encode("utf-8", "replace").decode("utf-8"))
    return 0
