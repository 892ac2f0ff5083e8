"""Join the process group of a run and leave it, also after a failure of one rank or several."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lavis_lite.distributed import peer_is_gone, rank_is_gone
from lavis_lite.errors import DistributedError
from lavis_lite.process.children import follow_parent, remove_stale_folders
from lavis_lite.process.exits import cause_of, stop_signals_ignored
from lavis_lite.process.launch import Launch, launch_from_environment


class _State:
    store: Any = None
    """key-value store that all ranks of this attempt share"""


def init(device: torch.device, timeout_minutes: float = 10.0, rendezvous_minutes: float = 5.0) -> Launch:
    """Join the process group that the launcher describes (gloo on CPU, NCCL on GPU); one process needs none.

    Args:
        device: decides the backend.
        timeout_minutes: of every later collective.
        rendezvous_minutes: how long to wait here for the other ranks.

    Raises:
        DistributedError: the launcher's variables make no sense, or another rank did not come.
    """
    launch = launch_from_environment()
    if launch.note:
        print(f"note: {launch.note}", flush=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives of objects, and barriers, take the current GPU: else all take GPU 0
    if launch.world_size > 1 and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            follow_parent(signal.SIGTERM)  # if torchrun is killed, its ranks save and leave
        # not at the top: builds of torch without torch.distributed have no stores
        from lavis_lite.distributed.rendezvous import Rendezvous

        store = Rendezvous(launch.rank, launch.world_size, rendezvous_minutes).meet()
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size,
                                    timeout=timedelta(minutes=timeout_minutes))
        except (dist.DistNetworkError, dist.DistStoreError, RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise DistributedError(f"rank {launch.rank} of {launch.world_size} met the others at {address}, but no "
                                   f"group could be made: {error}") from error
        _State.store = store
    return launch


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _State.store = None


@contextlib.contextmanager
def group(device: torch.device, timeout_minutes: float = 10.0, rendezvous_minutes: float = 5.0) -> Iterator[Launch]:
    """Context manager: the process group of `init`, which takes the same arguments and raises the same errors.

    If a run fails on several ranks, the first error is the cause and the others follow from it. Later errors that pass
    through here are marked with `reported_elsewhere = True`, so that only the cause is reported. A signal that stops a
    rank while it handles such an error changes nothing.
    """
    launch = init(device, timeout_minutes, rendezvous_minutes)
    store, hosts = _State.store, launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        yield launch
    except BaseException as error:
        with stop_signals_ignored():  # torchrun terminates the other ranks as soon as one has left
            final = _leave_failed(error, launch, store, hosts)
        if final is not error:
            raise final from error
        raise
    finally:
        shutdown()


def _leave_failed(error: BaseException, launch: Launch, store: Any, hosts: bool) -> BaseException:
    """Leave the group after an error; returns the error to raise in its place."""
    cause = cause_of(error)
    lost_rank = isinstance(cause, RuntimeError) and peer_is_gone(cause)
    final = rank_is_gone(cause) if lost_rank else error
    if store is not None and not getattr(cause, "same_on_all_ranks", False):
        if not _is_first_failure(store):
            for each in (error, cause, final):
                each.reported_elsewhere = True  # type: ignore[attr-defined]
        shutdown()
        remove_stale_folders()  # of ranks on this host that were killed
        if hosts:  # the lost rank will not report a failure
            _wait_for_failures(store, launch.world_size - lost_rank)
    return final


_FAILED = "failed"
_PATIENCE = 2.0
"""seconds that a failing rank spends on the store"""


def _is_first_failure(store: Any) -> bool:
    """Whether no other rank has failed before this one; true if the store does not answer."""
    try:
        store.set_timeout(timedelta(seconds=_PATIENCE))
        return bool(store.add(_FAILED, 1) == 1)
    except (RuntimeError, OSError):
        return True


def _wait_for_failures(store: Any, ranks: int) -> None:
    """Keep the store open a little, so that the other ranks can report their failures to it.

    References to gloo's group keep its connections open, so ranks in the middle of a training notice later.
    """
    deadline = time.monotonic() + _PATIENCE / 4
    with contextlib.suppress(RuntimeError, OSError):
        while store.add(_FAILED, 0) < ranks and time.monotonic() < deadline:
            time.sleep(0.02)
