"""What these tests register is forgotten after each of them: other tests look at the registry as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_lite.registry import Registry, registry

PROJECTS = tuple(path.name for path in (Path(__file__).parent / "projects").iterdir())


@pytest.fixture(autouse=True)
def own_registrations() -> Iterator[None]:
    """Registries as before, and the projects' modules unloaded, so that the next import registers again."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, Registry)]
    before = [set(kind._classes) for kind in kinds]
    yield
    for kind, names in zip(kinds, before, strict=True):
        for name in set(kind._classes) - names - kind.builtins.keys():
            del kind._classes[name]
    for name in [name for name in sys.modules if name.partition(".")[0] in PROJECTS]:
        del sys.modules[name]
