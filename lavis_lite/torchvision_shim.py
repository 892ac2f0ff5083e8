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
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAMESPACE = "torchvision::"


def ensure_torchvision() -> None:
    """Import torchvision, working around operators that do not load, and without torch's compiler. Idempotent.

    Raises:
        ImportError: torchvision is not installed (Python's own message).
    """
    if "torchvision" in sys.modules:
        return
    import_late()
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


# --- modules that are imported once they are used ---------------------------------------------------------------------
DYNAMO = "torch._dynamo"
CALLED_LATER = {
    f"{DYNAMO}.utils": "is_compile_supported",  # imported by torchvision.ops
    f"{DYNAMO}._trace_wrapped_higher_order_op": "TransformGetItemToIndex",  # imported by transformers, for its masks
}
"""module -> the one name that is imported from it and called later, or never"""
MODELS = "transformers.models"
"""looks through the files of all models when it is imported, although one model is wanted"""


def import_late() -> None:
    """Put light modules in the places of heavy ones. One that is imported already stays."""
    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = LateDynamo()
        sys.modules.update({name: LateFunction(name, function) for name, function in CALLED_LATER.items()})
    package = None if MODELS in sys.modules else PathFinder.find_spec(MODELS.partition(".")[0])  # it is not imported
    if package and (spec := PathFinder.find_spec(MODELS, package.submodule_search_locations)):
        sys.modules[MODELS] = LatePackage(spec)


def import_dynamo_now() -> ModuleType:
    """The real module, with all marks that were made before it was imported."""
    late = sys.modules.get(DYNAMO)
    for name in (DYNAMO, *CALLED_LATER):
        if isinstance(sys.modules.get(name), Late):
            del sys.modules[name]
    real = importlib.import_module(DYNAMO)
    while isinstance(late, LateDynamo) and late.allowed:
        real.allow_in_graph(late.allowed.pop())
    return real


class Late(ModuleType):
    """Stands for a module. A name that it lacks is read from the real one, which is then imported in its place."""

    def _real(self) -> ModuleType:
        import_dynamo_now()
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (DYNAMO, "__path__"):  # asked of all of sys.modules
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._real(), name)


class LatePackage(Late):
    """Stands for a package of which submodules are imported, and nothing else so far."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__path__ = spec, spec.submodule_search_locations or []

    def _real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        for name, module in vars(self).items():
            if isinstance(module, ModuleType):  # a submodule that was imported before
                vars(real).setdefault(name, module)
        return real

    def __getattr__(self, name: str) -> Any:
        submodule = f"{self.__name__}.{name}"
        if not name.startswith("__") and PathFinder.find_spec(submodule, self.__path__):  # from package import name
            return importlib.import_module(submodule)
        return super().__getattr__(name)


class LateFunction(Late):
    """Stands for a module of which one function is imported long before it is called."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        setattr(self, function, lambda *args, **kwargs: getattr(self._real(), function)(*args, **kwargs))


class LateDynamo(Late):
    """Has what other packages use of `torch._dynamo` although they compile nothing.

    Attributes:
        allowed: functions that the real `allow_in_graph` has to mark.
    """

    def __init__(self) -> None:
        super().__init__(DYNAMO)
        self.allowed: list[Any] = []

    def allow_in_graph(self, fn: Any) -> Any:
        """Mark a function once the real module is there."""
        self.allowed.append(fn)
        return fn

    def assume_constant_result(self, fn: Any) -> Any:
        """As the real one: an attribute is all there is."""
        fn._dynamo_marked_constant = True
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Nothing: no graph is being made."""

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """A function that compiling leaves alone; as long as nothing can be compiled it calls `fn` itself."""
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **options)
        if getattr(fn, "__code__", None) is None:  # classes and objects
            return self._real().disable(fn, recursive, **options)
        real: list[Callable[..., Any]] = []

        @functools.wraps(fn)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            dynamo = sys.modules[DYNAMO]
            if isinstance(dynamo, Late):
                return fn(*args, **kwargs)
            if not real:
                real.append(dynamo.disable(fn, recursive, **options))
            return real[0](*args, **kwargs)

        disabled._torchdynamo_disable = True  # type: ignore[attr-defined]  # the mark of the real one
        return disabled
