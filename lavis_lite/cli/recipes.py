"""`python -m lavis_lite recipes [PATTERN]`: the recipes of the package; `--copy NAME` writes one to change."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import columns, command_parser, new_file, program
from lavis_lite.config.layers import RECIPES
from lavis_lite.config.recipes import Recipe, find_recipe, recipes, unknown_recipe
from lavis_lite.errors import ConfigError, RegistryError, did_you_mean


def main(argv: Sequence[str]) -> int:
    """List recipes, or copy one.

    Raises:
        RegistryError: no recipe matches the pattern.
        ConfigError: the recipe to copy is unknown, or its file cannot be written.
    """
    arguments = command_parser("recipes", "List the recipes of the package: what each does and costs.",
                               ["", "'blip2/*'", "--eval 'instructblip/*'", "--copy blip2/stage1"])
    arguments.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names (default: all)")
    kinds = arguments.add_mutually_exclusive_group()
    kinds.add_argument("--eval", action="store_true", help="list evaluations instead of trainings")
    kinds.add_argument("--copy", metavar="NAME", help="write this recipe to a file of your own")
    arguments.add_argument("--to", type=new_file, metavar="FILE",
                           help="with --copy: the file (default: NAME.yaml here)")
    chosen = arguments.parse_args(list(argv))
    if chosen.to and not chosen.copy:
        raise ConfigError(f"--to {chosen.to} is the file of --copy; add --copy NAME.")
    if chosen.copy:
        return _copy(chosen.copy, chosen.to)
    kind = [recipe for recipe in recipes() if ("/eval/" in recipe.name) == chosen.eval]
    found = [recipe for recipe in kind if fnmatch.fnmatch(recipe.name, chosen.pattern)]
    if not found:
        raise RegistryError(f"no recipe matches {chosen.pattern!r}; "
                            f"{did_you_mean(chosen.pattern, [recipe.name for recipe in kind])}")
    print(table(found))
    return 0


def table(found: Sequence[Recipe]) -> str:
    """A line of name and cost for each recipe; below it what it does."""
    return "\n".join(columns(("recipe", "cost"), [(recipe.name, recipe.cost() or "-") for recipe in found],
                             [recipe.what() for recipe in found]))


def _copy(name: str, to: Path | None) -> int:
    """Write a recipe to a file; its `base:` is found from any folder."""
    recipe = find_recipe(name)
    if recipe is None:
        raise unknown_recipe(name)
    path = to or Path(recipe.path.name)
    if path.exists():
        raise ConfigError(f"--copy {name}: {path} exists; name another file with --to.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(movable(recipe), encoding="utf-8")
    command = "evaluate" if "/eval/" in recipe.name else "train"
    print(f"wrote {path}; run it with: {program(command)} {path}")
    return 0


def movable(recipe: Recipe) -> str:
    """The text of a recipe; a `base:` in its folder becomes `projects/...`, which is found from any folder."""
    def from_root(match: re.Match[str]) -> str:
        beside = recipe.path.parent / match[1]
        return f"base: {Path(os.path.relpath(beside, RECIPES)).as_posix()}" if beside.is_file() else match[0]

    return re.sub(r"^base: (\S+)$", from_root, recipe.path.read_text(encoding="utf-8"), flags=re.MULTILINE)
