"""`python -m lavis_lite data list`: the named data sets, and which of their files are on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

from lavis_lite.cli.console import columns, command_parser
from lavis_lite.config.compose import compose_dataset
from lavis_lite.config.named import dataset_files, dataset_names, dataset_rows
from lavis_lite.datasets.inventory import State, state
from lavis_lite.errors import DataError, ErrorList, did_you_mean
from lavis_lite.registry import registry

HEAD = ("data set", "builder", "splits", "training rows", "on this machine")


@dataclass(frozen=True)
class Entry:
    """One type of a data set: the facts of its YAML file, and which of its files are on this machine."""

    name: str
    type: str
    builder: str
    splits: list[str]
    train_size: int | None
    """training samples as published; None: unknown"""
    what: str
    state: State

    @property
    def label(self) -> str:
        """Its name, with the type if that is not the default one."""
        return self.name if self.type == "default" else f"{self.name} ({self.type})"


def main(argv: Sequence[str]) -> int:
    """Print the table.

    Raises:
        DataError: no name matches the pattern.
    """
    arguments = command_parser("data list", "List the data sets of the package, and which of their files are on this "
                               "machine.", ["", "'coco*'", "--json"])
    arguments.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names (default: all)")
    arguments.add_argument("--json", action="store_true", help="print everything known as one JSON list")
    chosen = arguments.parse_args(list(argv))
    entries = [entry for name in dataset_names() if fnmatchcase(name, chosen.pattern) for entry in entries_of(name)]
    if not entries:
        raise DataError(f"no data set matches {chosen.pattern!r}; {did_you_mean(chosen.pattern, dataset_names())}")
    if chosen.json:
        print(json.dumps([{**asdict(entry), "on_this_machine": str(entry.state)} for entry in entries], indent=1,
                         ensure_ascii=False))
    else:
        print(table(entries))
    return 0


def entries_of(name: str) -> list[Entry]:
    """All types of a data set.

    Raises:
        ErrorList: the file has errors.
    """
    found = []
    for kind in dataset_rows(name):
        composition = compose_dataset(name, [f"datasets.{name}.type={kind}"])
        if composition.errors:
            raise ErrorList(f"{name} ({kind}) cannot be used:", composition.errors)
        section: Any = composition.config.datasets[name]
        splits = registry.get_builder_class(section.builder or name)(name, section).splits()
        found.append(Entry(name, str(kind), section.builder or name, splits, section.train_size,
                           description(name), state(name, section)))
    return found


def description(name: str) -> str:
    """The first sentence of the comment at the head of a data set's file."""
    return comment(name).partition(". ")[0].rstrip(".") + "."


def comment(name: str) -> str:
    """The comment at the head of a data set's file."""
    lines = dataset_files()[name].read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ").rstrip() for line in takewhile(lambda line: line.startswith("#"), lines))


def table(entries: Sequence[Entry]) -> str:
    """One line of columns per type; below it what it is."""
    return "\n".join(columns(HEAD, [(entry.label, entry.builder, " ".join(entry.splits),
                                     f"{entry.train_size:,}" if entry.train_size else "-", str(entry.state))
                                    for entry in entries], [entry.what for entry in entries]))
