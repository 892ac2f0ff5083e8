"""`python -m lavis_lite new-project NAME`: a folder with a recipe, a class and a test that train at once."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from lavis_lite.cli.console import command_parser, program
from lavis_lite.errors import ConfigError
from lavis_lite.io.files import why_not_writable
from lavis_lite.registry import registry

FILES = {"recipe.yaml": "recipe.yaml", "model.py": "model.py", "test_project.py": "test_{name}.py",
         "README.md": "README.md"}
"""file of lavis_lite/assets/skeleton, without .txt -> its name in the project"""


def main(argv: Sequence[str]) -> int:
    """Write the project.

    Raises:
        ConfigError: the name cannot be imported, belongs to a model of the package, or the folder exists.
    """
    arguments = command_parser("new-project", "Write a project of your own: a recipe, a model class and a test that "
                               "train at once.", ["my_project"])
    arguments.add_argument("name", metavar="NAME", help="of the folder and of the model; a Python name in lower case")
    name = arguments.parse_args(list(argv)).name
    folder = Path(name)
    _check(name, folder)
    folder.mkdir()
    words = {"name": name, "cls": "".join(part.capitalize() for part in name.split("_"))}
    for source, target in FILES.items():
        text = (resources.files("lavis_lite") / "assets" / "skeleton" / f"{source}.txt").read_text(encoding="utf-8")
        path = folder / target.format(name=name)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
        print(f"wrote {path}")
    print(f"train it with: {program('train')} {folder / 'recipe.yaml'}")
    return 0


def _check(name: str, folder: Path) -> None:
    """Raise if the project cannot have this name."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name == "lavis_lite":
        near = re.sub(r"\W", "_", name.lower())
        raise ConfigError(f"{name!r} cannot be the name of a project. It is imported, so it must be a Python name "
                          f"in lower case, such as {near if near.isidentifier() and near != name else 'my_project'}.")
    if name in registry.model:
        raise ConfigError(f"{name!r} is a model of the package; choose another name.")
    if folder.exists():
        raise ConfigError(f"{folder.absolute()} exists; choose another name or folder.")
    if importlib.util.find_spec(name):
        raise ConfigError(f"{name!r} is a Python module already, which the project would hide; choose another name.")
    if reason := why_not_writable(folder, folder=True):
        raise ConfigError(f"{folder.absolute()} cannot be written ({reason}); choose another working folder.")
