"""How the processes of a run find each other, also after restarts.

The store of a launcher (torchrun's outlives its workers) may still hold keys of an earlier attempt. So each process
writes a fresh nonce, and rank 0 publishes the roster of all nonces. A rank confirms a roster only if it contains its
own nonce. After all ranks have confirmed the same roster, its hash is the prefix of all later keys. So no attempt reads
the keys of another, however the launcher counts its attempts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    DistNetworkError,
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

from lavis_lite.errors import DistributedError, listed

MESSAGE_AFTER = 5.0
"""seconds of waiting"""
_POLL = 0.05
_PREFIX = "lavis_lite"


class Rendezvous:
    """The meeting of all ranks at MASTER_ADDR:MASTER_PORT. It waits in short steps, so that a signal ends it at once.

    Args:
        rank, world_size: this process among all.
        minutes: how long to wait for the others.
    """

    def __init__(self, rank: int, world_size: int, minutes: float) -> None:
        self.rank, self.world_size, self.minutes = rank, world_size, minutes
        self.host, self.port = os.environ["MASTER_ADDR"], _port(os.environ["MASTER_PORT"])
        self._start = time.monotonic()
        self._reported = False

    def meet(self) -> Store:
        """Wait for all ranks and return the store of this attempt.

        Raises:
            DistributedError: a rank did not come, rank 0 has left again, or its port is taken.
        """
        store = self._store()
        try:
            token = self._lead(store) if self.rank == 0 else self._follow(store)
        except (DistNetworkError, DistStoreError) as error:
            raise DistributedError(f"rank {self.rank} of {self.world_size} lost the meeting point at {self.host}:"
                                   f"{self.port}: the process that opened it (rank 0, or the launcher) has ended. Its "
                                   f"own output has the reason. Here: {_first_line(error)}") from error
        return PrefixStore(f"{_PREFIX}/{token}", store)

    # --- the store ------------------------------------------------------------------------------------------------
    def _store(self) -> Store:
        """The launcher's store; if it has none, rank 0 opens one."""
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            try:
                return self._connect(is_master=True)
            except (DistNetworkError, DistStoreError, RuntimeError) as error:
                raise DistributedError(f"rank 0 cannot open {self.host}:{self.port}: {_first_line(error)}. Is another "
                                       "run using this port? Set MASTER_PORT to a free one, on all ranks.") from error
        for _ in self._waiting():
            with contextlib.suppress(OSError, DistNetworkError):
                socket.create_connection((self.host, self.port), timeout=1.0).close()
                return self._connect(is_master=False)
            self._report_waiting(f"for rank 0 at {self.host}:{self.port}")
        raise self._timed_out("rank 0")

    def _connect(self, is_master: bool) -> TCPStore:
        return TCPStore(self.host, self.port, self.world_size, is_master, timedelta(minutes=self.minutes),
                        wait_for_workers=False)

    # --- the roster -----------------------------------------------------------------------------------------------
    def _lead(self, store: Store) -> str:
        nonces, confirmed = {0: uuid.uuid4().hex}, set[int]()
        published = ""
        for _ in self._waiting():
            for rank in range(1, self.world_size):
                if (nonce := _get(store, f"nonce/{rank}")) is not None:
                    nonces[rank] = nonce
            absent = [rank for rank in range(self.world_size) if rank not in nonces]
            if not absent:
                roster = json.dumps([nonces[rank] for rank in range(self.world_size)])
                if roster != published:
                    _set(store, "roster", roster)
                    published = roster
                confirmed = {rank for rank in range(1, self.world_size)
                             if _get(store, f"confirmed/{rank}") == _token(roster)}
                absent = [rank for rank in range(1, self.world_size) if rank not in confirmed]
            if not absent:
                _set(store, "complete", _token(published))
                return _token(published)
            self._report_waiting(f"for {_ranks(absent)} at {self.host}:{self.port}")
        raise self._timed_out(_ranks(absent))

    def _follow(self, store: Store) -> str:
        nonce, token = uuid.uuid4().hex, ""
        _set(store, f"nonce/{self.rank}", nonce)
        for _ in self._waiting():
            roster = _get(store, "roster")
            if roster is not None and nonce in roster and _token(roster) != token:
                token = _token(roster)
                _set(store, f"confirmed/{self.rank}", token)
            if token and _get(store, "complete") == token:
                return token
            self._report_waiting(f"at {self.host}:{self.port} until rank 0 has seen all ranks", times=6.0)
        raise self._timed_out("the other ranks")

    # --- waiting --------------------------------------------------------------------------------------------------
    def _waiting(self) -> Iterator[None]:
        while time.monotonic() - self._start < self.minutes * 60:
            yield
            time.sleep(_POLL)

    def _report_waiting(self, what: str, times: float = 1.0) -> None:
        """Print one message, a little before the promised time."""
        if not self._reported and time.monotonic() - self._start > times * MESSAGE_AFTER * 0.6:
            self._reported = True
            print(f"rank {self.rank} of {self.world_size} waits {what}, for up to {self.minutes:g} minutes "
                  "(run.rendezvous_timeout_minutes). Start all ranks with one srun or torchrun; to run one process "
                  "alone, unset SLURM_NTASKS or WORLD_SIZE.", file=sys.stderr, flush=True)

    def _timed_out(self, who: str) -> DistributedError:
        return DistributedError(
            f"rank {self.rank} of {self.world_size} waited {self.minutes:g} minutes for {who} at {self.host}:"
            f"{self.port}. A rank that never came has ended before: its own output has the reason. Or the address "
            "cannot be reached from here: set MASTER_ADDR and MASTER_PORT to an address that all hosts can reach.")


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**16:
        raise DistributedError(f"MASTER_PORT={text} is not a port; set it to a number from 1 to 65535.")
    return int(text)


def _get(store: Store, key: str) -> str | None:
    """A value; None at once if the key is missing."""
    name = f"{_PREFIX}/{key}"
    return store.get(name).decode() if store.check([name]) else None


def _set(store: Store, key: str, value: str) -> None:
    store.set(f"{_PREFIX}/{key}", value)


def _token(roster: str) -> str:
    return hashlib.sha256(roster.encode()).hexdigest()[:16]


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {listed(ranks, 8)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
