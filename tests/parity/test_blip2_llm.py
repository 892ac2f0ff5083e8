"""Stage 2 and InstructBLIP against LAVIS' recorded outputs: losses, gradients, written ids, ranks of candidates.

Every folder of cases is compared in all that its cases offer: see `llm_checks`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import find_parity
from tests.parity.llm_cases import Recorded, case_folders
from tests.parity.llm_checks import comparisons_of
from tests.parity.recordings import NOT_HERE, Comparison, uncompared

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
