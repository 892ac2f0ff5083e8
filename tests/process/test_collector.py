"""The collector is paused for a while, and stays as the program has set it."""

from __future__ import annotations

import gc

import pytest

from lavis_lite.process.collector import collector_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_a_pause_ends_also_by_an_error_and_keeps_the_programs_own(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), collector_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
