"""Old module names still import: the new module itself, with a note."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from lavis_lite.moved import MOVED, OF_LAVIS, new_name


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"lavis_lite.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"lavis_lite.{old} is now lavis_lite.{MOVED[old]}"):
        module = importlib.import_module(f"lavis_lite.{old}")
    assert module is importlib.import_module(f"lavis_lite.{MOVED[old]}")


def test_modules_of_a_package_that_moved_are_found_too() -> None:
    assert new_name("lavis_lite.models.language_model.families") == "lavis_lite.models.language.families"
    assert new_name("lavis_lite.models.base") is None and new_name("torch.files") is None


@pytest.mark.filterwarnings("ignore:lavis_lite:DeprecationWarning")
def test_from_imports_of_old_names() -> None:
    from lavis_lite.models.checkpoints.load import load_state  # type: ignore[import-not-found]

    from lavis_lite import files  # type: ignore[attr-defined]
    from lavis_lite.checkpoints import load
    from lavis_lite.io import files as present

    assert files is present and load_state is load.load_state


def test_an_unknown_module_is_still_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="lavis_lite.no_such_room"):
        importlib.import_module("lavis_lite.no_such_room")


@pytest.mark.parametrize("name", OF_LAVIS)
def test_a_module_of_lavis_is_refused_with_its_way(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"`lavis.{name}`, can be imported after `import lavis_lite.compat"):
        importlib.import_module(f"lavis_lite.{name}")
    assert importlib.util.find_spec("lavis_lite.registry") is not None
