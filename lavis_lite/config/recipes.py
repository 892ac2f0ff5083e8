"""The recipes that come with the package: `projects/` of a checkout, or its copy in an installed wheel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lavis_lite.config.layers import RECIPES
from lavis_lite.errors import ConfigError, did_you_mean

FIRST = "blip2"
"""the project that a name alone means, if it has a recipe of that name"""


@dataclass(frozen=True)
class Recipe:
    """One recipe; `name` is its path below `projects/`, without .yaml."""

    name: str

    @property
    def path(self) -> Path:
        """Its file."""
        return RECIPES / "projects" / f"{self.name}.yaml"

    def header(self) -> list[str]:
        """The comment lines at the top of the file, without their marks."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return [line[1:].removeprefix(" ") for line in lines[:end]]

    def what(self) -> str:
        """What it does: the first sentence of its header."""
        return re.split(r"(?<=\.)\s+(?=[A-Z0-9])", self._prose())[0]

    def cost(self) -> str:
        """What it costs: the header's sentence that begins with "Cost", and the processes of its launch line."""
        found = re.search(r"\bCost(?: stated by)?:? (.*?)\.(?:\s|$)", self._prose())
        launch = re.search(r"torchrun (?:--nnodes=(\d+) )?--nproc_per_node=(\d+)", "\n".join(self.header()))
        if found or not launch:
            return found[1] if found else ""
        return f"{int(launch[1] or 1) * int(launch[2])} GPUs; time not stated"

    def _prose(self) -> str:
        return " ".join(" ".join(line for line in self.header() if not line.startswith(" ")).split())


def recipes() -> list[Recipe]:
    """All recipes of the package but those that only others build on, by name."""
    home = RECIPES / "projects"
    names = (path.relative_to(home).with_suffix("") for path in home.rglob("*.yaml"))
    return [Recipe(name.as_posix()) for name in sorted(names) if "base" not in name.parts]


def find_recipe(text: str) -> Recipe | None:
    """The recipe that a text names: "projects/blip2/stage1.yaml", "blip2/stage1" or "stage1"; None if no recipe.

    Raises:
        ConfigError: several projects have a recipe of that name, and BLIP-2 has none.
    """
    name = text.removeprefix("projects/")
    name = name if name == text else name.removesuffix(".yaml")
    known = [recipe.name for recipe in recipes()]
    if name in known or "/" in name:
        return Recipe(name) if name in known else None
    found = [other for other in known if other.rpartition("/")[2] == name]
    preferred = [other for other in found if other.startswith(f"{FIRST}/")] or found
    if len(preferred) > 1:
        raise ConfigError(f"{text!r} names {len(preferred)} recipes: {', '.join(preferred)}. Write one of them.")
    return Recipe(preferred[0]) if preferred else None


def unknown_recipe(text: str) -> ConfigError:
    """The error for a text that names neither a file nor a recipe."""
    names: Sequence[str] = [recipe.name for recipe in recipes()]
    short = {name.rpartition("/")[2]: name for name in names}
    return ConfigError(f"{text}: there is neither such a file nor such a recipe; "
                       f"{did_you_mean(text, names if '/' in text else short)} "
                       "`python -m lavis_lite recipes` lists all.")
