"""When Python looks for garbage: not while rows are read, nor while a model's libraries are imported.

Importing torch and transformers makes half a million objects that stay. Looking at them again and again takes nearly as
long as making them.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


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
