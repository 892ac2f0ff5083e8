"""Several processes: how they meet, and the collectives that the package needs. Free of cost in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_lite.distributed.collectives import (
    RowPlan,
    all_gather,
    all_gather_object,
    all_gather_with_grad,
    all_reduce_sum,
    barrier,
    broadcast_object,
    fetch_rows,
    global_transpose,
    is_main,
    local,
    peer_is_gone,
    plan_rows,
    rank,
    rank_is_gone,
    world_size,
)
from lavis_lite.moved import lazy_names

if TYPE_CHECKING:
    from lavis_lite.distributed.process_group import group, init, shutdown

__all__ = ["RowPlan", "all_gather", "all_gather_object", "all_gather_with_grad", "all_reduce_sum", "barrier",
           "broadcast_object", "fetch_rows", "global_transpose", "group", "init", "is_main", "local", "peer_is_gone",
           "plan_rows", "rank", "rank_is_gone", "shutdown", "world_size"]

# models call collectives, and a model alone joins no group
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(("group", "init", "shutdown"), __name__ + ".process_group"))
