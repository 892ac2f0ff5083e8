"""Child processes: what those that were killed leave behind is removed by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_lite import processes
from lavis_lite.processes import remove_stale_folders


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="zombies are told apart by /proc")
def test_a_process_that_is_dead_but_not_collected_counts_as_gone(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun collects a killed rank only after the others have looked for what it left."""
    monkeypatch.setattr(processes, "_socket_root", lambda: str(tmp_path))
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folders = {process: tmp_path / f"ll-{process.pid}-abc" for process in (running, dead)}
    for folder in folders.values():
        folder.mkdir()
    try:
        dead.kill()
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        remove_stale_folders()
        assert folders[running].exists() and not folders[dead].exists()
    finally:
        running.kill()
        for process in folders:
            process.wait()
