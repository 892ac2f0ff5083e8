"""`python -m lavis_lite zoo [PATTERN]`: what every model type is, where its weights come from, whether it runs here."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from lavis_lite.cli.console import program
from lavis_lite.errors import RegistryError, did_you_mean
from lavis_lite.zoo import ZooRow, describe, list_models

HEAD = ("arch", "model_type", "parameters", "status", "weights")


def main(argv: Sequence[str]) -> int:
    """Print the table.

    Raises:
        RegistryError: no arch matches the pattern.
    """
    arguments = argparse.ArgumentParser(program("zoo"))
    arguments.add_argument("pattern", nargs="?", default="*", help="for example 'blip2_t5*'")
    arguments.add_argument("--json", action="store_true", help="one JSON list of all that is known")
    chosen = arguments.parse_args(list(argv))
    rows = describe(chosen.pattern)
    if not rows:
        raise RegistryError(f"no model matches {chosen.pattern!r}; {did_you_mean(chosen.pattern, list_models())}")
    if chosen.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False))
    else:
        print(table(rows))
    return 0


def table(rows: Sequence[ZooRow]) -> str:
    """One line of columns per model type; under it what it is, and the papers' scores."""
    cells = [HEAD, *((row.arch, row.model_type, row.size or "-", row.status, weights(row)) for row in rows)]
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(HEAD))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]
    out = [lines[0], "-" * len(lines[0])]
    for row, line in zip(rows, lines[1:], strict=True):
        out += [line, f"    {row.what}" + (f" Paper: {row.paper}." if row.paper else "")]
    return "\n".join(out)


def weights(row: ZooRow) -> str:
    """Short names of checkpoint and language model."""
    parts = [PurePosixPath(row.weights).name if "://" in row.weights else row.weights, row.language_model]
    return " + ".join(part for part in parts if part) or "none: starts at random"
