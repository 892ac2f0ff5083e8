"""What all commands share: their names, help pages and tables, and lines that only the first process prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from lavis_lite.config.recipes import counterpart, find_recipe, unknown_recipe, without_counterpart
from lavis_lite.errors import ConfigError, ErrorList, nearest, shown
from lavis_lite.io.files import why_not_writable
from lavis_lite.process.launch import named_rank

if TYPE_CHECKING:
    from lavis_lite.config.compose import Composition

SCRIPT = "lavis-lite"
"""the command that an installed package brings"""


def program(command: str) -> str:
    """How `command` was started: `train.py`, `lavis-lite train`, or else `python -m lavis_lite train`."""
    called = Path(sys.argv[0]).name
    if called == f"{command}.py":
        return called
    return f"{SCRIPT if called == SCRIPT else 'python -m lavis_lite'} {command}"


def command_parser(command: str, description: str, examples: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser; its help is a page: usage, what the command does, options, examples.

    Args:
        command: its name, such as "data shard".
        description: what it does, one sentence or two.
        examples: arguments to show.
    """
    name = program(command)
    lines = "".join(f"\n  {name} {example}" for example in examples)
    return _Parser(name, description=description, epilog=f"examples:{lines}" if lines else None,
                   formatter_class=_HelpPage if lines else argparse.HelpFormatter)


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments as all other errors are reported: in one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError."""
        given = message.partition("unrecognized arguments: ")[2].split()
        unknown = next((word.partition("=")[0] for word in given if word.startswith("--")), "")
        near = nearest(unknown, self._option_string_actions, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"{message}{hint} `{self.prog} --help` lists the arguments.")


class _HelpPage(argparse.HelpFormatter):
    """Wraps all texts but the examples, which have a line each."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def add_config(arguments: argparse.ArgumentParser, required: bool = False, help_: str = "",
               positional: bool = False) -> None:
    """Add `--cfg-path` and `--options`; with `positional`, the recipe may also be given without `--cfg-path`."""
    usual = "a run's configuration" if required else "a run's configuration that has the data set's section"
    group = arguments.add_mutually_exclusive_group(required=required)
    group.add_argument("--cfg-path", metavar="YAML", type=recipe_path,
                       help=f"{help_ or usual}: a file, or a recipe's name from `recipes`")
    if positional:
        group.add_argument("cfg_path", nargs="?", metavar="RECIPE", type=recipe_path, action=_IfGiven,
                           help="the same, without --cfg-path")
    arguments.add_argument("--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                           help="override settings, for example run.max_iters=200 model.qformer_dropout=0")


class _IfGiven(argparse.Action):
    """Stores a value; an absent positional leaves what `--cfg-path` stored."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
                 option_string: str | None = None) -> None:
        if values is not None:
            setattr(namespace, self.dest, values)


def recipe_path(path: str) -> str:
    """The path of a configuration: the path itself, a recipe of the package by name, or LAVIS' recipe's counterpart.

    Raises:
        ConfigError: a name without ending is neither a file nor a recipe, or means several recipes.
    """
    if Path(path).exists():
        return path
    if found := counterpart(path):
        print_once(f"note: {path} is a recipe of LAVIS. {found} is the recipe of this experiment here; --print-config "
                   "shows its settings.", sys.stderr)
        return str(found)
    if recipe := find_recipe(path):
        own = Path("projects", f"{recipe.name}.yaml")
        return str(own if own.is_file() else recipe.path)
    if not Path(path).suffix:
        raise unknown_recipe(path)
    if why := without_counterpart(path):
        print_once(f"note: {why}", sys.stderr)
    return path


def new_file(path: str) -> Path:
    """Type of an argument: a file to write. A path that cannot be written is an error before any work."""
    return _writable(path, folder=False)


def new_folder(path: str) -> Path:
    """Type of an argument: a folder to write into, as `new_file`."""
    return _writable(path, folder=True)


def _writable(name: str, folder: bool) -> Path:
    path = Path(name).expanduser()
    if reason := why_not_writable(path, folder):
        raise argparse.ArgumentTypeError(f"{name!r} cannot be written ({reason}); choose another path")
    return path


def port(text: str) -> int:
    """Type of an argument: a TCP port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def seed(text: str) -> int:
    """Type of an argument: a seed of torch's random numbers."""
    if not text.removeprefix("-").isdecimal() or not -2**63 <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number of at most 64 bits")
    return int(text)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], below: Sequence[str] = ()) -> list[str]:
    """A table as lines: the head, a rule, the rows, all in aligned columns; `below` has a further line for each row."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    first, *others = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                      for row in cells]
    lines = [f"{line}\n    {more}" for line, more in zip(others, below, strict=True)] if below else others
    return [first, "-" * len(first), *lines]


def print_once(text: str, file: TextIO | None = None) -> None:
    """Print a line in the first of all processes; to standard output by default."""
    if named_rank() in ("", "0"):
        print(text, file=file or sys.stdout, flush=True)


# --- runs: train and evaluate -----------------------------------------------------------------------------------------
def add_common(arguments: argparse.ArgumentParser) -> None:
    """Add `--print-config` and `--traceback`, which training and evaluation share."""
    arguments.add_argument("--print-config", action="store_true",
                           help="show every setting and the layer that set it, and stop")
    arguments.add_argument("--traceback", action="store_true", help="show where an error comes from")


def carry_out(composition: Composition, arguments: argparse.Namespace, cfg_path: str) -> int:
    """Check a composed run; then, by the arguments, print its configuration, try it, or run it.

    Args:
        composition: the run.
        arguments: with `print_config`, `dry_run`, `resume` and `start_over`.
        cfg_path: name of the configuration in messages.

    Raises:
        LavisLiteError: any mistake in the input, before work starts.
    """
    from lavis_lite.config.compose import to_yaml  # these commands only: others start faster without
    from lavis_lite.preflight import check, missing

    errors = check(composition)
    if arguments.print_config:
        print(to_yaml(composition, with_layers=True), end="")
    if not errors and not arguments.print_config:
        from lavis_lite.tasks.base import unmet_needs  # imports torch: not before everything else is right

        errors = unmet_needs(composition.config)
    needs = [] if arguments.print_config else missing(composition.config)
    raise_errors(cfg_path, errors, [] if arguments.dry_run else needs)
    if arguments.print_config:
        return 0
    return _run(composition, arguments, needs, cfg_path)


def raise_errors(cfg_path: str, errors: list[str], needs: list[str]) -> None:
    """Raise one error that lists every mistake and everything that is missing; nothing if both lists are empty."""
    if errors or needs:
        from lavis_lite.preflight import fetch_hint

        error = ErrorList(f"{cfg_path} cannot run:", [*errors, *(f"missing: {need}" for need in needs)])
        if needs:
            error.args = (f"{error.args[0]}\nfetch what can be fetched with: {fetch_hint(cfg_path)}",)
        error.same_on_all_ranks = True  # type: ignore[attr-defined]
        raise error


def _run(composition: Composition, arguments: argparse.Namespace, needs: list[str], cfg_path: str) -> int:
    if arguments.dry_run:  # what follows imports torch: only when there is work
        from lavis_lite.dry_run import dry_run
        from lavis_lite.preflight import fetch_hint

        dry_run(composition, needs, fetch_hint(cfg_path), getattr(arguments, "gpus", None))
        return 0
    from lavis_lite import engine

    for note in composition.config.notes:
        print(f"note: {note}", flush=True)
    engine.main(composition, resume=arguments.resume, start_over=arguments.start_over)
    return 0
