"""Child processes: what those that were killed leave behind is removed by the next one."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lavis_lite.errors import WorkerError
from lavis_lite.process import children as processes
from lavis_lite.process import exits
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


def test_workers_share_what_their_server_imported(tmp_path: Path) -> None:
    script = """
        from lavis_lite.datasets.loading.loader import SHARED
        from lavis_lite.process.children import worker_context
        def imported(queue):
            import sys
            queue.put([name in sys.modules for name in SHARED])
        if __name__ == "__main__":
            context = worker_context("forkserver", SHARED)
            queue = context.SimpleQueue()
            worker = context.Process(target=imported, args=(queue,))
            worker.start()
            print(queue.get())
            worker.join()
    """
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[True, True]\n", done.stderr


def ended(script: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """A process that ran a script, with buffered output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], **streams, env=environment, text=True,
                          timeout=60, check=False)


def test_the_end_of_a_command_skips_pythons_teardown_and_nothing_else() -> None:
    """gloo's threads abort the process if they ask for the interpreter's lock during teardown (1 of 8 busy runs)."""
    done = ended("""
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
    assert (done.returncode, done.stdout, done.stderr) == (0, "unflushed thread\natexit\n", "")


def test_what_is_open_when_a_command_ends_is_not_lost(tmp_path: Path) -> None:
    """Files that nobody closes, logs, temporary folders, children and their semaphores; one handler fails."""
    done = ended(f"""
        import atexit, logging, logging.handlers, multiprocessing, os, tempfile, time, weakref
        from concurrent.futures import ProcessPoolExecutor
        from lavis_lite.process.exits import leave
        class Owner: pass
        owner = Owner()
        weakref.finalize(owner, print, "finalize")
        os.chdir({str(tmp_path)!r})
        text, both = open("text", "w"), open("both", "wb+")
        text.write("written"), both.write(b"written")
        file = logging.FileHandler("log", delay=True)
        memory = logging.handlers.MemoryHandler(100, target=file)
        memory.emit(logging.makeLogRecord({{"msg": "logged", "levelno": logging.INFO}}))
        folder = tempfile.TemporaryDirectory(dir=".")
        context = multiprocessing.get_context("fork")
        child = context.Process(target=time.sleep, args=(600,), daemon=True)
        child.start()
        pool = ProcessPoolExecutor(1, context)
        queued = [pool.submit(time.sleep, 0.05) for _ in range(3)]
        atexit.register(lambda: print(sum(task.done() for task in queued), child.pid))
        lock = multiprocessing.get_context("spawn").Lock()
        atexit.register(lambda: 1 / 0)
        leave(0)
    """)
    tasks, child, last = done.stdout.split()
    assert (done.returncode, tasks, last) == (0, "3", "finalize") and "ZeroDivisionError" in done.stderr
    assert "leaked" not in done.stderr, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "text": "written", "both": "written", "log": "logged\n"}
    assert not processes._lives(int(child))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk of Linux")
def test_output_that_cannot_be_written_at_the_end_has_its_code_and_message() -> None:
    script = "from lavis_lite.cli.main import entry; import sys; sys.argv[1:] = ['--version']; entry()"
    with open("/dev/full", "w") as full:
        done = ended(script, stdout=full)
    assert (done.returncode, done.stderr) == (
        exits.UNWRITTEN, "error: the output cannot be written: No space left on device.\n")
    reader, writer = os.pipe()
    os.close(reader)
    gone = ended(script, stdout=writer)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (exits.UNREAD, "")
    unbuffered = subprocess.run([sys.executable, "-u", "-c", script], stdout=open("/dev/full", "w"),
                                stderr=subprocess.PIPE, text=True, check=False)
    assert (unbuffered.returncode, unbuffered.stderr) == (exits.USER_ERROR, done.stderr)


# --- a signal while an error is handled -------------------------------------------------------------------------------
def stop() -> None:
    raise exits.Terminated(signal.SIGTERM)


def look_up() -> None:
    """As pathlib's `__str__` does: the frame raises, and goes on."""
    try:
        {}["cached"]
    except KeyError:
        stop()


def poll() -> None:
    """As torch's loader does: the library's frame catches what one below it raised."""
    code = "try:\n    queue.get_nowait()\nexcept Exception:\n    stop()"
    exec(compile(code, queue.__file__, "exec"), {"queue": queue.Queue(), "stop": stop})


def fail() -> None:
    raise ValueError("the user's")


def fail_and_save() -> None:
    try:
        fail()
    finally:
        look_up()


@pytest.mark.parametrize(("interrupted", "cause"), [(look_up, exits.Terminated), (poll, exits.Terminated),
                                                    (fail_and_save, ValueError)])
def test_only_an_error_that_ends_the_command_goes_before_a_signal(interrupted: Any, cause: type) -> None:
    with pytest.raises(exits.Terminated) as caught:
        interrupted()
    assert type(exits.cause_of(caught.value)) is cause
