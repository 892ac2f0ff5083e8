"""A lock for work that threads of one process must not do at the same time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_BUILDING = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: only one thread at a time runs any of the functions that have it.

    For functions that load models. While transformers loads one, it changes torch's classes and defaults for the whole
    process. Threads that load at the same time get models without weights, and the changes stay.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _BUILDING:
            return function(*args, **kwargs)

    return alone
