"""What a class can do, asked through a protocol: the names that it lacks, and the classes that have them.

`lavis_lite.models.protocols` and `lavis_lite.datasets.protocols` name the abilities. `isinstance` works with those that
hold methods alone; `lacking` also names what is missing, and works with classes before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from lavis_lite.errors import ContractError
from lavis_lite.registry import Registry

T = TypeVar("T")


def asked_by(protocol: type, attributes: bool = True) -> list[str]:
    """Names that a protocol asks for; without `attributes` only its methods and properties. Dunder names are left out.

    Attributes without a value exist on instances only, so a class does not show them.
    """
    found: dict[str, None] = {}
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False) and base is not Protocol:
            named = [*vars(base), *(vars(base).get("__annotations__", {}) if attributes else ())]
            found |= dict.fromkeys(name for name in named if not name.startswith("_"))
    return sorted(found)


def lacking(subject: object, protocol: type, attributes: bool = True) -> list[str]:
    """Names of a protocol that a class or an instance does not have.

    Args:
        subject: a class (only its methods and properties are compared), or an instance.
        protocol: what it should have.
        attributes: ask an instance for attributes without a value in the protocol, too.
    """
    is_class = isinstance(subject, type)
    kind = subject if is_class else type(subject)
    # the class first: asking an instance would compute its properties
    return [name for name in asked_by(protocol, attributes and not is_class)
            if not hasattr(kind, name) and (is_class or not hasattr(subject, name))]


def need(subject: object, protocol: type[T], caller: str) -> T:
    """The same object, known to have the protocol.

    Args:
        subject: an instance.
        protocol: what it must have.
        caller: who asks, the beginning of the message.

    Raises:
        ContractError: it lacks some of it; the message says what.
    """
    if lost := lacking(subject, protocol):
        raise ContractError(f"{caller} needs {protocol.__name__} ({protocol.__module__}); {type(subject).__name__} has "
                            f"no {', '.join(lost)}.")
    return subject  # type: ignore[return-value]


def names_with(kind: Registry[T], protocol: type, of: Callable[[type[T]], type | None] = lambda cls: cls) -> list[str]:
    """Registered names of classes that have a protocol. Imports all classes of the kind, so it is for messages.

    Args:
        kind: the registry to look through.
        protocol: what the class must have.
        of: registered class -> the class in question; None: not known.
    """
    asked = ((name, of(kind.get(name))) for name in kind.names())
    return [name for name, cls in asked if cls is not None and not lacking(cls, protocol)]
