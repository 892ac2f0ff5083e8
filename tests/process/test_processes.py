"""Child processes: what those that were killed leave behind is removed by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lavis_lite.errors import WorkerError
from lavis_lite.process import children as processes
from lavis_lite.process.children import remove_stale_folders


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


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), ConnectionRefusedError(111, "Connection refused")])
def test_a_server_of_workers_that_was_killed_is_told_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(process: object) -> None:
        raise error

    monkeypatch.setattr("multiprocessing.popen_forkserver.Popen", lost)
    with pytest.raises(WorkerError, match="that starts loader workers .* was killed, most likely because memory"):
        processes.worker_context("forkserver").Process(target=print).start()  # type: ignore[attr-defined]


def test_the_end_of_a_command_skips_pythons_teardown_and_nothing_else() -> None:
    """gloo's threads abort the process if they ask for the interpreter's lock during teardown (1 of 8 busy runs)."""
    script = textwrap.dedent("""
        import atexit, threading, time
        from lavis_lite.process.exits import leave
        class Torn:
            def __del__(self): print("torn down")
        torn = Torn()
        atexit.register(print, "atexit")
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
        print("unflushed", end=" ")
        leave(0)
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "unflushed thread\natexit\n", "")
