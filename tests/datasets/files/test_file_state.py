"""A file that was replaced is told from what it was, whatever times it was given."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lavis_lite.datasets.files.locate import BLOCK, HASHED, file_state


@pytest.mark.parametrize("at", [0, 3 * BLOCK])  # the second is between the blocks that are hashed
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, at: int) -> None:
    path, content = tmp_path / "a.json", bytearray(8 * HASHED * BLOCK)
    path.write_bytes(content)
    before, times = file_state(path), path.stat().st_mtime_ns
    assert file_state(path) == before
    content[at] = 1
    if at:
        time.sleep(0.02)  # the system's clock is that coarse
    path.write_bytes(content)
    os.utime(path, ns=(times, times))
    assert file_state(path) != before
