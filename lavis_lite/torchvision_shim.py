"""Lets torchvision be imported where its compiled operators cannot be loaded.

The torchvision wheel on PyPI is linked against CUDA torch. Beside a CPU-only torch its operator library does not load,
and `import torchvision` (hence `import timm`) stops at the first "fake" implementation it registers, with
`operator torchvision::nms does not exist`. None of what this package uses (transforms, tensors, image reading by
Pillow) needs those operators, so during the first import the registrations of operators that are not there are
skipped. Where the operators load, nothing at all is changed.

Importing this module has no effect; every module of ours that imports torchvision or timm calls
`ensure_torchvision()` first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lavis_lite.late_dynamo import import_dynamo_late

NAMESPACE = "torchvision::"


def ensure_torchvision() -> None:
    """Import torchvision, working around operators that do not load, and without torch's compiler. Idempotent.

    Raises:
        ImportError: torchvision is not installed (Python's own message).
    """
    if "torchvision" in sys.modules:
        return
    import_dynamo_late()
    if operators_load():
        importlib.import_module("torchvision")
        return
    with skip_missing_operators():
        importlib.import_module("torchvision")


def operators_load() -> bool:
    """Whether the installed torchvision's compiled operators can be loaded beside this torch.

    Loading is what torchvision itself does first; a library is loaded once however often it is asked for.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    libraries = [file for folder in folders for file in Path(folder).glob("_C*") if file.suffix in (".so", ".pyd")]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:  # undefined symbols, or CUDA libraries that are not there: the case this module is for
            return False
    return bool(libraries)


@contextlib.contextmanager
def skip_missing_operators() -> Iterator[None]:
    """Within: `torch.library.register_fake` ignores operators of torchvision that do not exist; restored on leaving."""
    import torch

    original = torch.library.register_fake

    def register_fake(op: Any, func: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith(NAMESPACE) and not _exists(op):
            return func if func is not None else (lambda implementation: implementation)
        return original(op, func, **options)

    torch.library.register_fake = register_fake
    try:
        yield
    finally:
        torch.library.register_fake = original


def _exists(operator: str) -> bool:
    import torch

    return hasattr(torch.ops.torchvision, operator.removeprefix(NAMESPACE))
