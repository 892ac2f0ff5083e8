"""Run a function in a fork, or in several gloo processes and get what each returned."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as mp

from lavis_lite import distributed
from tests.helpers.threads import THREADS, fork


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forked(work: Callable[[], int], stderr: int | None = None) -> int:
    """Process id of a fork that does this: an interpreter would take seconds to import what is here already.

    Args:
        work: its result is the exit code.
        stderr: a descriptor that takes the place of the fork's own.
    """
    child = fork()
    if child:
        return child
    code = 1
    try:
        if stderr is not None:
            os.dup2(stderr, 2)
            sys.stderr = os.fdopen(stderr, "w", buffering=1)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_fork(work: Callable[[], int]) -> int:
    """Exit code of a fork that does this."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def run_as_main(runner: Callable[..., object], words: list[str]) -> int:
    """Run a module or a script as the program, with the rest of the words as its arguments."""
    with mock.patch.object(sys, "argv", words):
        try:
            runner(words[0], run_name="__main__")
        except SystemExit as left:
            return int(left.code or 0)
    return 0


def run_processes(function: Callable[..., Any], count: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(*args)` in `count` new processes that form one gloo group.

    A group takes a second or two to form; let one call do several cases.

    Args:
        function: a module-level function (it is pickled); it sees torchrun's variables and a joined process group.
        count: number of processes.
        args: passed to every process; picklable.
        timeout: seconds after which the processes are killed, on a machine with a free core for each.

    Returns:
        What each process returned, rank 0 first (tensors on the CPU, numbers, lists, dicts of those).

    Raises:
        AssertionError: a process failed (with its traceback) or the time ran out.
    """
    context = mp.get_context("forkserver")  # forked from a process that has imported what is slow to import
    context.set_forkserver_preload(["tests.helpers.heavy_imports"])
    results: Any = context.Queue()
    port = free_port()
    processes = [context.Process(target=_child, args=(rank, count, port, results, function, args), daemon=True)
                 for rank in range(count)]
    for process in processes:
        process.start()
    try:
        return _collect(results, count, timeout)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _collect(results: Any, count: int, timeout: float) -> list[Any]:
    timeout *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    found: dict[int, Any] = {}
    for _ in range(count):
        try:
            rank, value, failure = results.get(timeout=timeout)
        except Exception as fault:
            raise AssertionError(f"{count - len(found)} of {count} processes gave nothing in {timeout} s") from fault
        assert failure is None, f"process {rank} failed:\n{failure}"
        found[rank] = value
    return [found[rank] for rank in range(count)]


def _child(rank: int, count: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(THREADS)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    try:
        distributed.init(torch.device("cpu"), timeout_minutes=2)
        value = function(*args)
        results.put((rank, _plain(value), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        distributed.shutdown()


def _plain(value: Any) -> Any:
    """Tensors as numpy arrays travel safely between processes that end at different times."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
