"""Several processes: how they meet, and the collectives that the package needs. Free of cost in one process."""

from __future__ import annotations

from lavis_lite.distributed.collectives import (
    all_gather,
    all_gather_object,
    all_gather_with_grad,
    all_reduce_sum,
    barrier,
    broadcast_object,
    fetch_rows,
    group,
    init,
    is_main,
    local,
    peer_is_gone,
    rank,
    rank_is_gone,
    shutdown,
    world_size,
)

__all__ = ["all_gather", "all_gather_object", "all_gather_with_grad", "all_reduce_sum", "barrier", "broadcast_object",
           "fetch_rows", "group", "init", "is_main", "local", "peer_is_gone", "rank", "rank_is_gone", "shutdown",
           "world_size"]
