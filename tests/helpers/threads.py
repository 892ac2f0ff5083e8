"""How many threads torch has in every process of a test: one, or what run_scripts/test_matrix.sh asks for."""

from __future__ import annotations

import os

import torch

THREADS = int(os.environ.get("LAVIS_LITE_TEST_THREADS", "1"))


def fork() -> int:
    """As os.fork. The child computes with one thread: those of its parent are not there, and OpenMP waits for them."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
    return child
