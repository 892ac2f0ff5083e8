"""Stage 2 and InstructBLIP against LAVIS' recorded outputs: losses, gradients, written ids, ranks of candidates.

Every folder of cases is compared in all that its cases offer: see `llm_checks`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import find_parity
from tests.parity.llm_cases import Recorded, case_folders
from tests.parity.llm_checks import Check, checks_of


def comparisons() -> list[Any]:
    """Every comparison; one that skips where nothing is recorded."""
    found = [pytest.param(recorded, case, check, id=f"{recorded.folder.name}-{case}-{check.__name__}")
             for recorded in map(Recorded, case_folders(find_parity())) for case, check in checks_of(recorded)]
    skip = pytest.mark.skip("recorded outputs (../shared/parity, or LAVIS_LITE_PARITY) not here")
    return found or [pytest.param(None, "", None, marks=skip, id="none")]


@pytest.mark.parametrize(("recorded", "case", "check"), comparisons())
def test_as_recorded(recorded: Recorded, case: str, check: Check) -> None:
    check(recorded, case)
