"""Where LAVIS looks for files: `library_root` and `cache_root` of its registry, and a project's own folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lavis_lite.errors import ConfigError
from lavis_lite.io import files

ROOTS: dict[str, str] = {}
"""registered paths by name (`registry.register_path`)"""


def root(name: str) -> str:
    """A registered path; the package's own of that name where a project registered none."""
    package = Path(__file__).resolve().parents[2]
    usual = {"library_root": package, "repo_root": package.parent, "cache_root": files.cache_root()}
    return ROOTS.get(name) or str(usual.get(name, ""))


def get_abs_path(rel_path: str) -> str:
    """A path relative to `library_root`, as an absolute one."""
    return os.path.join(root("library_root"), rel_path)


def config_path(cls: type, name: str) -> str:
    """The YAML that a class names: under `library_root`, or under a folder on the way up from the class's module.

    Raises:
        ConfigError: it is in none of them.
    """
    first = Path(get_abs_path(name))
    home = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or ".").resolve().parent
    candidates = [first, Path(name).absolute(), *(folder / name for folder in (home, *home.parents))]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{cls.__name__}: there is no {name} (looked at {first}, in the working folder, and from "
                          f"{home} upwards). Register the folder that it is relative to: "
                          "registry.register_path('library_root', FOLDER).")
    return str(found)
