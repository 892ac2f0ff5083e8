"""Keeps `torch._dynamo` out of processes that compile nothing: importing it costs as much as importing torch.

torchvision, timm, transformers, and torch's own optimizers import it for a few names that do nothing until something is
compiled. `import_dynamo_late` puts a module in its place that has these names. Whatever else is asked of it, such as
what `torch.compile` needs, imports the real one, which then gets every mark that was made before.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
CALLED_LATER = {
    f"{DYNAMO}.utils": "is_compile_supported",  # imported by torchvision.ops
    f"{DYNAMO}._trace_wrapped_higher_order_op": "TransformGetItemToIndex",  # imported by transformers, for its masks
}
"""module -> the one name that is imported from it and called later, or never"""


def import_dynamo_late() -> None:
    """Put the light modules in their places. Does nothing if the real one is imported already."""
    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = LateDynamo()
        sys.modules.update({name: LateFunction(name, function) for name, function in CALLED_LATER.items()})


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
