"""The collector leaves imported modules alone, and nothing that a model or the user's own policy could lose by it."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_lite.process import collector, exits

Imported = Callable[[int], int]


@pytest.fixture
def frozen_by(monkeypatch: pytest.MonkeyPatch) -> Imported:
    """How many objects are frozen by an import of so many modules."""
    monkeypatch.setattr(collector, "_model_lives", lambda: False)
    monkeypatch.setattr(collector, "_is_command", True)

    def imported(modules: int) -> int:
        before = gc.get_freeze_count()
        with collector.imports_kept():
            assert not gc.isenabled()
            for name in (f"imported_{modules}_{number}" for number in range(modules)):
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        return gc.get_freeze_count() - before

    return imported


def test_many_modules_are_left_alone_and_few_are_not(frozen_by: Imported) -> None:
    assert frozen_by(3) == 0 and frozen_by(collector.MANY) >= collector.MANY and gc.isenabled()


def test_nothing_is_while_a_model_lives(frozen_by: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(collector, "_is_command", True)
    import torch

    model = torch.nn.Linear(1, 1)
    assert frozen_by(collector.MANY) == 0 and model.weight is not None


def test_nothing_is_in_a_users_program(frozen_by: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_is_command", False)
    assert frozen_by(collector.MANY) == 0 and gc.isenabled()


def test_a_collector_that_the_program_paused_stays_paused(frozen_by: Imported) -> None:
    with collector.collector_paused():
        assert frozen_by(collector.MANY) == 0 and not gc.isenabled()


def test_files_among_what_is_left_alone_are_flushed_at_the_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        file.write("text")
        gc.freeze()
        exits._flush_files()
        gc.freeze()
        assert (tmp_path / "log").read_text() == "text"
