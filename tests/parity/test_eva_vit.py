"""LAVIS' vision encoders, recorded: features, every block's output, gradients, and interpolated positions.

Runs every recorded folder whose config.json has `kind` at its top level (eva_clip_g, clip_L): see `vision_checks`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import find_parity
from tests.parity.recordings import NOT_HERE, Comparison, uncompared
from tests.parity.vision_checks import Recorded, case_folders, comparisons_of

FOLDERS = [Recorded(folder) for folder in case_folders(find_parity())]
NONE = [pytest.param(None, None, marks=pytest.mark.skip(NOT_HERE), id="none")]


def comparisons() -> list[Any]:
    """Every comparison; one that skips where nothing is recorded."""
    return [pytest.param(recorded, one, id=f"{recorded.folder.name}-{one.name}")
            for recorded in FOLDERS for one in comparisons_of(recorded)] or NONE


@pytest.mark.parametrize(("recorded", "comparison"), comparisons())
def test_as_recorded(recorded: Recorded, comparison: Comparison) -> None:
    comparison.run(recorded)


@pytest.mark.parametrize("recorded", FOLDERS, ids=lambda recorded: recorded.folder.name)
def test_every_recorded_tensor_is_compared(recorded: Recorded) -> None:
    assert uncompared(recorded, comparisons_of(recorded)) == []
