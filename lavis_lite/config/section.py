"""What a section of a run's configuration is: a dataclass that also reads like LAVIS' sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

S = TypeVar("S", bound="Section")


class Section:
    """A dataclass that may also be read like LAVIS' config sections: `cfg.get("key", default)`, `cfg["key"]`."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` if it is absent or None."""
        value = getattr(self, key, None)
        return default if value is None else value

    def replaced(self: S, **changes: Any) -> S:
        """A copy with other values of existing keys."""
        return replace(self, **changes)  # type: ignore[type-var]

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __contains__(self, key: str) -> bool:
        return any(field_.name == key for field_ in fields(self))  # type: ignore[arg-type]


class OpenSection(Section):
    """A section without fixed keys: what reads it decides, by `opened`, which of those that are given it takes."""

    reader: ClassVar[type]
    """the class that reads the section"""
    suggested: ClassVar[frozenset[str]] = frozenset()
    """what a key that is not taken may have been meant for"""
    unread: ClassVar[frozenset[str]] = frozenset()
    """keys that are taken, although nothing reads them"""

    @classmethod
    def opened(cls, content: Mapping[str, Any]) -> type[OpenSection]:
        """The section's class for these keys, with a field for each that is taken."""
        raise NotImplementedError(f"{cls.__name__} must define opened")
