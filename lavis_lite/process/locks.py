"""What several threads of a server may not do at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_BUILDING = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: of all functions that have it, one thread runs one at a time.

    For whatever loads models. Meanwhile transformers changes torch's classes and defaults for the whole process, so
    threads that load at once get models without weights, and leave these changes behind.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _BUILDING:
            return function(*args, **kwargs)

    return alone
