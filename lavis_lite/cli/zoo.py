"""`python -m lavis_lite zoo [PATTERN]`: every model type with its size and weights, and whether it runs here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from lavis_lite.cli.console import columns, command_parser
from lavis_lite.errors import RegistryError
from lavis_lite.registry import registry
from lavis_lite.zoo import ZooRow, describe

HEAD = ("arch", "model_type", "parameters", "status", "weights")


def main(argv: Sequence[str]) -> int:
    """Print the table.

    Raises:
        RegistryError: no arch matches the pattern.
    """
    arguments = command_parser("zoo", "Describe every model type: size, weights, and whether it runs offline.",
                               ["", "'blip2_t5*'", "--json"])
    arguments.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of arch names (default: all)")
    arguments.add_argument("--json", action="store_true", help="print everything known as one JSON list")
    chosen = arguments.parse_args(list(argv))
    rows = describe(chosen.pattern)
    if not rows:
        raise no_model(chosen.pattern)
    if chosen.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False))
    else:
        print(table(rows))
    return 0


def no_model(pattern: str) -> RegistryError:
    """The error for a pattern that matches no arch."""
    return RegistryError(f"no model matches {pattern!r}; {registry.model.hint(pattern)}")


def table(rows: Sequence[ZooRow]) -> str:
    """One line of columns per model type; below it what it is, and the papers' scores."""
    return "\n".join(columns(
        HEAD, [(row.arch, row.model_type, row.size or "-", row.status, weights(row)) for row in rows],
        [row.what + (f" Paper: {row.paper}." if row.paper else "") for row in rows]))


def weights(row: ZooRow) -> str:
    """Short names of checkpoint and language model."""
    parts = [PurePosixPath(row.weights).name if "://" in row.weights else row.weights, row.language_model]
    return " + ".join(part for part in parts if part) or "none: starts at random"
