"""What these tests register is forgotten after each of them: other tests look at the registry as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lavis_lite.compat.lavis import paths
from lavis_lite.compat.lavis import registry as lavis
from lavis_lite.registry import Registry, registry

PROJECTS = tuple(path.name for path in (Path(__file__).parent / "projects").iterdir())


@pytest.fixture(autouse=True)
def own_registrations() -> Iterator[None]:
    """Registries as before, and the projects' modules unloaded, so that the next import registers again."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, Registry)]
    before = [(set(kind._classes), set(kind.replaced)) for kind in kinds]
    roots = dict(paths.ROOTS)
    written = {kind: dict(classes) for kind, classes in lavis.registry._written.items()}
    yield
    for kind, (names, replaced) in zip(kinds, before, strict=True):
        for name in kind.replaced - replaced:
            kind.replaced.discard(name)
            kind._classes.pop(name, None)
            kind._classes[name] = kind.builtin(name)
        for name in set(kind._classes) - names - kind.builtins.keys():
            del kind._classes[name]
    lavis.registry._written = written
    paths.ROOTS.clear()
    paths.ROOTS.update(roots)
    for name in [name for name in sys.modules if name.partition(".")[0] in PROJECTS]:
        del sys.modules[name]
