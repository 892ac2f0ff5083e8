"""When Python looks for garbage: not while rows are read or modules imported, and not among imported modules later.

Importing torch and transformers makes half a million objects that stay. Looking at them again and again, and once more
when the process ends, takes nearly as long.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

MANY = 100
"""modules from which on an import is worth it"""
_is_command = False


def begin_command() -> None:
    """Say that this process runs a command, so that no objects of a user's program are in it."""
    global _is_command
    _is_command = True


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Context manager: inside it Python does not look for garbage in circles of objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def imports_kept() -> Iterator[None]:
    """Context manager for imports: the collector is paused inside; in a command it leaves their objects alone later.

    So it does only where many modules were imported. What was made before is left alone too, and so never freed if it
    is part of a circle. In a user's program that could be anything, and in a command a model, so none may live by then.
    """
    before, gc_was_on = len(sys.modules), gc.isenabled()
    with collector_paused():
        yield
        if _is_command and gc_was_on and len(sys.modules) - before >= MANY and not _model_lives():
            gc.collect()  # garbage that stayed would hold the frames of callers, and what they have made by then
            gc.freeze()


def _model_lives() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.nn.Parameter in map(type, gc.get_objects())
