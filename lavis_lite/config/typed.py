"""Plain containers -> dataclass instances, collecting every error instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, Union, cast

from lavis_lite.config.schema import OpenSection
from lavis_lite.errors import did_you_mean, nearest, shown
from lavis_lite.redaction import mask

D = TypeVar("D")


class Checker:
    """Builds typed sections and collects their errors.

    A key that is null keeps its default, unless null is a value of its type.

    Args:
        where: dotted key -> name of the layer that set it, for messages.
        unset: dotted keys set to null over another layer's value: these may be unknown, or entries of open sections.

    Attributes:
        errors, notes: one sentence each.
        left_out: dotted keys that null removed.
    """

    def __init__(self, where: Callable[[str], str], unset: Collection[str] = ()) -> None:
        self.where, self.unset = where, unset
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.left_out: list[str] = []

    def error(self, key: str, message: str) -> None:
        """Collect one error of a dotted key."""
        self.errors.append(mask(f"{self.where(key)}: {key}: {message}"))

    def note(self, key: str, message: str) -> None:
        """Collect a note on a dotted key."""
        self.notes.append(f"{self.where(key)}: {key} {message}")

    def section(self, cls: type[D], content: Any, path: str, extra: Mapping[str, Any] | None = None) -> D:
        """An instance of a dataclass; unknown keys and wrong types become errors, the field keeps its default.

        Args:
            extra: keys that are allowed but not part of the class (they pass with a note): key -> type(s).
        """
        if content is None:
            content = {}
        if not isinstance(content, Mapping):
            self.error(path, f"must be a section of keys, not {shown(content)}.")
            content = {}
        if issubclass(cls, OpenSection):
            opened = cls.opened(content)
            cls = cast("type[D]", opened)
            self.notes += [f"{self.where(f'{path}.{key}')}: {path}.{key}: nothing in the source of "
                           f"{opened.reader.__name__} reads it." for key in sorted(opened.unread)]
        hints = typing.get_type_hints(cls)
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for key, value in content.items():
            dotted = f"{path}.{key}" if path else str(key)
            if value is None and (not _takes_null(hints[key]) if key in known else dotted in self.unset):
                self.left_out.append(dotted)
            elif key in known:
                ok, converted = self.convert(value, hints[key], dotted)
                if ok:
                    values[key] = converted
            elif getattr(cls, "open_ended", False) and not nearest(str(key), known):
                continue
            elif extra is not None and key in extra:
                self.notes.append(f"{self.where(dotted)}: {dotted} belongs to another task and has no effect here.")
            else:
                choices = getattr(cls, "suggested", known)
                self.errors.append(f"{self.where(dotted)}: unknown key {dotted}; {did_you_mean(str(key), choices)}")
        return cls(**values)

    def convert(self, value: Any, hint: Any, path: str) -> tuple[bool, Any]:
        """(whether the value fits the type, the value as that type); a value that does not fit is an error."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return self._finite(value, path), self._without_unset(value, path)
        if origin in (Union, types.UnionType):
            return self._union(value, args, path)
        if origin is Literal:
            if value in args:
                return True, value
            self.error(path, f"{shown(value)} is not allowed; {did_you_mean(str(value), map(str, args))}")
            return False, None
        if dataclasses.is_dataclass(hint):
            return True, self.section(hint, value, path)  # type: ignore[arg-type]
        if origin is list:
            return self._list(value, args[0] if args else Any, path)
        if origin is dict:
            return self._dict(value, args[1] if args else Any, path)
        return self._plain(value, hint, path)

    def _union(self, value: Any, args: tuple[Any, ...], path: str) -> tuple[bool, Any]:
        if value is None and type(None) in args:
            return True, None
        options = [arg for arg in args if arg is not type(None)]
        for option in options:
            trial = Checker(self.where, self.unset)
            ok, converted = trial.convert(value, option, path)
            if ok and not trial.errors:
                return True, converted
        if len(options) == 1:  # its own message says more
            return self.convert(value, options[0], path)
        self.error(path, f"must be {_names(options)}, not {shown(value)}.")
        return False, None

    def _list(self, value: Any, item: Any, path: str) -> tuple[bool, Any]:
        if not isinstance(value, list):
            self.error(path, f"must be a list, not {shown(value)}; write [{str(value)[:80]}].")
            return False, None
        pairs = [self.convert(entry, item, f"{path}.{number}") for number, entry in enumerate(value)]
        return all(ok for ok, _ in pairs), [entry for _, entry in pairs]

    def _dict(self, value: Any, item: Any, path: str) -> tuple[bool, Any]:
        if not isinstance(value, Mapping):
            self.error(path, f"must be a section of keys, not {shown(value)}.")
            return False, None
        kept = {str(key): entry for key, entry in value.items()
                if entry is not None or _takes_null(item) and f"{path}.{key}" not in self.unset}
        self.left_out += [f"{path}.{key}" for key in value if key not in kept]
        pairs = {key: self.convert(entry, item, f"{path}.{key}") for key, entry in kept.items()}
        return all(ok for ok, _ in pairs.values()), {key: entry for key, (_, entry) in pairs.items()}

    def _plain(self, value: Any, hint: Any, path: str) -> tuple[bool, Any]:
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            ok = self._finite(value, path)
            return ok, float(value) if ok else None
        if hint is int and isinstance(value, float) and value.is_integer():
            return True, int(value)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return True, value
        self.error(path, f"must be {_names([hint])}, not {shown(value)}.")
        return False, None

    def _without_unset(self, value: Any, path: str) -> Any:
        """A value of any type, without the entries of its sections that null removed."""
        if not isinstance(value, Mapping):
            return value
        gone = [key for key, entry in value.items() if entry is None and f"{path}.{key}" in self.unset]
        self.left_out += [f"{path}.{key}" for key in gone]
        return {key: self._without_unset(entry, f"{path}.{key}") for key, entry in value.items() if key not in gone}

    def _finite(self, value: Any, path: str) -> bool:
        """Whether all numbers in a value are finite; NaN would pass every comparison with a limit."""
        if isinstance(value, Mapping):
            return all([self._finite(entry, f"{path}.{key}") for key, entry in value.items()])
        if isinstance(value, list):
            return all([self._finite(entry, f"{path}.{number}") for number, entry in enumerate(value)])
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            self.error(path, f"must be a finite number, not {value}.")
            return False
        return True


def _takes_null(hint: Any) -> bool:
    """Whether null is a value of a type."""
    return hint is Any or type(None) in typing.get_args(hint)


def parameter_problem(function: Callable[..., Any], key: str, value: Any) -> str:
    """The type error of a value for a parameter, as the end of a sentence; "" if the value fits.

    Annotations of types that are not plain are left to the function itself.
    """
    try:
        hint = typing.get_type_hints(function).get(key, Any)
    except NameError:  # a name that only type checkers import
        return ""
    if not _is_plain_hint(hint):
        return ""
    checker = Checker(lambda path: "")
    fits, _ = checker.convert(value, hint, key)
    return "" if fits else checker.errors[-1].partition(f"{key}: ")[2]


def _is_plain_hint(hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType, list):
        return all(map(_is_plain_hint, args))
    return origin is Literal or hint in (int, float, str, bool, type(None))


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list",
          dict: "a section"}


def _names(hints: list[Any]) -> str:
    words = (" or ".join(map(repr, typing.get_args(hint))) if typing.get_origin(hint) is Literal
             else _WORDS.get(typing.get_origin(hint) or hint, str(hint)) for hint in hints)
    return " or ".join(words)
