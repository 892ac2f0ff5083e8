"""Makes `lavis` and its modules importable: each is a module with the names of a table, resolved on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from lavis_lite.compat.lavis.names import ABSENT, HOME, MODULES
from lavis_lite.errors import LavisLiteError, did_you_mean

ROOT = "lavis"
DOCS = "docs/guide/porting_a_lavis_project.md says what is carried."


class NotCarriedError(LavisLiteError, ImportError):
    """A module or a name of LAVIS has no counterpart here."""


class NoModuleError(NotCarriedError, ModuleNotFoundError):
    """A module of LAVIS has no counterpart here."""


class CompatModule(ModuleType):
    """A module of `lavis` with the names of a row of the table."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"`{name}` by lavis_lite.compat.lavis.")
        self.__all__ = [*MODULES.get(name, {})]

    def __getattr__(self, name: str) -> Any:
        here = self.__name__
        target = MODULES.get(here, {}).get(name) or _imported_there(here, name)
        if target is not None:
            module, _, attribute = target.partition(":")
            found = importlib.import_module(HOME + module if module.startswith(".") else module)
            value = getattr(found, attribute) if attribute else found
            setattr(self, name, value)
            return value
        if f"{here}.{name}" in MODULES:
            return importlib.import_module(f"{here}.{name}")
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotCarriedError(f"{here}.{name} of LAVIS is not carried by lavis_lite.compat.lavis; "
                              f"{did_you_mean(name, self.__all__)} {DOCS}")


def _imported_there(module: str, name: str) -> str | None:
    """The target of a name that other modules of the table have: LAVIS' modules import each other's, and show them."""
    targets = {row[name] for row in MODULES.values() if name in row} if module.count(".") > 1 else set()
    return targets.pop() if len(targets) == 1 else None


class _TableLoader(Loader):
    """Makes the empty module; its names are resolved when they are used."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module of the table."""
        return CompatModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class LavisFinder(MetaPathFinder):
    """Finds `lavis` and every module below it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        """The module of the table with that name; None for names of other packages.

        Raises:
            NoModuleError: a module of LAVIS that is not in the table.
        """
        if fullname.partition(".")[0] != ROOT:
            return None
        if fullname in MODULES:
            return ModuleSpec(fullname, _TableLoader(), is_package=True)
        why = next((reason for start, reason in ABSENT.items() if fullname.startswith(start)),
                   did_you_mean(fullname, MODULES))
        error = NoModuleError(f"{fullname} of LAVIS is not carried by lavis_lite.compat.lavis: {why} {DOCS}")
        error.name = fullname
        raise error


def install() -> None:
    """Let `lavis` be imported, unless LAVIS itself is there.

    Raises:
        NotCarriedError: a package `lavis` is installed, or lies in a folder on the path.
    """
    if any(isinstance(finder, LavisFinder) for finder in sys.meta_path):
        return
    found = sys.modules.get(ROOT)
    spec = PathFinder.find_spec(ROOT)
    if found is not None or spec is not None:
        where = found if spec is None else spec.origin or next(iter(spec.submodule_search_locations or [""]))
        raise NotCarriedError(f"a package {ROOT!r} is here already ({where}), and lavis_lite.compat.lavis does not "
                              "replace it. Uninstall it (pip uninstall salesforce-lavis), or start from a folder "
                              "without a `lavis` in it.")
    sys.meta_path.insert(0, LavisFinder())
