"""Keyword arguments of the models' entry points: an unknown one is told with the nearest that there is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lavis_lite.errors import ConfigError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def known_options(method: Callable[P, R]) -> Callable[P, R]:
    """A method that raises ConfigError for a keyword argument it does not have, and names the nearest."""
    takes = {name: parameter for name, parameter in inspect.signature(method).parameters.items() if name != "self"}
    names = [name for name, parameter in takes.items() if parameter.kind is not parameter.VAR_KEYWORD]
    open_ended = len(names) < len(takes)

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not open_ended:
            for name in kwargs:
                if name not in takes:
                    raise ConfigError(f"{method.__name__} has no option {name!r}; {did_you_mean(name, names)}")
        return method(*args, **kwargs)

    return checked
