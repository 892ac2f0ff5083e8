"""When Python looks for garbage: not while rows are read or modules imported, and not among imported modules later.

Importing torch and transformers makes half a million objects that stay. Looking at them again and again, and once more
when the process ends, takes nearly as long.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

USUAL = 10  # Python's third threshold
MANY = 100
"""modules from which on an import is worth it"""


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
    """Context manager for imports: the collector is paused inside, and leaves alone what is there at the end.

    So it does only where many modules were imported. What the program has made before is left alone too, and so never
    freed if it is part of a circle. A model often is, so none may live by then. If the program has settings of its
    own for the collector, as the command line has, nothing changes.
    """
    if not gc.isenabled() or gc.get_threshold()[2] > USUAL:
        yield
        return
    before = len(sys.modules)
    with collector_paused():
        yield
        if len(sys.modules) - before >= MANY and not _model_lives():
            gc.collect()  # garbage that stayed would hold the frames of callers, and what they have made by then
            gc.freeze()


def _model_lives() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.nn.Parameter in map(type, gc.get_objects())
