"""Errors that a user can cause and fix, and helpers for their messages.

The command line prints the message of these classes without a traceback and exits with 2. Any other exception is a
defect of the package: the command line prints one line, writes the traceback to a file and exits with 1. All exit
codes: `lavis_lite.process.exits`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lavis_lite import redaction


class LavisLiteError(Exception):
    """Base of all errors that a user's input can cause. Secrets in the message are masked."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(redaction.mask(one) if isinstance(one, str) else one for one in args))


class ConfigError(LavisLiteError):
    """A YAML file, an override or a value in them is wrong."""


class RegistryError(LavisLiteError, KeyError):
    """A name is unknown to a registry, or is registered twice."""

    def __str__(self) -> str:  # KeyError would quote the message
        return str(self.args[0]) if self.args else ""


class DataError(LavisLiteError):
    """Annotations, images or other data files are missing, unreadable or malformed."""


class InputTypeError(DataError, TypeError):
    """A value has the wrong type for a method; the message names the right type and how to make one."""


class TextTooLongError(DataError):
    """Texts are longer than a model's positions; found before the model runs.

    Args:
        message: what is too long, by how much, and what to do.
        rows: index in the batch -> tokens of that text.
    """

    def __init__(self, message: str, rows: Mapping[int, int]) -> None:
        self.message, self.rows = message, dict(rows)
        super().__init__(message)

    def __reduce__(self) -> tuple[type[TextTooLongError], tuple[str, dict[int, int]]]:  # pickled with both arguments
        return type(self), (self.message, self.rows)


class CheckpointError(LavisLiteError):
    """A checkpoint is damaged, or does not fit the model it is loaded into."""


class ContractError(LavisLiteError):
    """A user's own model, task or data set does not keep the contract of its kind."""


class UndefinedMethodError(ContractError, NotImplementedError):
    """A subclass lacks a method that its base class leaves to it."""

    @classmethod
    def of(cls, owner: object, method: str) -> UndefinedMethodError:
        """The error of an object (or a class) without a method."""
        kind = owner if isinstance(owner, type) else type(owner)
        return cls(f"{kind.__name__} must define {method}; its base class says what that is.")


class DistributedError(LavisLiteError):
    """The launcher's environment variables do not describe a usable group of processes."""


class WorkerError(LavisLiteError):
    """A loader worker or another child process was killed or ran out of a limited resource.

    Such resources are memory, shared memory and open files. The message names what to raise or to lower.
    """


class MissingExtraError(LavisLiteError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class ErrorList(LavisLiteError):
    """Several errors found in one pass, shown as one numbered list.

    Args:
        heading: a line that names what was checked.
        errors: one sentence each.
    """

    def __init__(self, heading: str, errors: Sequence[str]) -> None:
        self.errors = list(errors)
        lines = [f"{heading} {counted(len(self.errors), 'error')}:"]
        lines += [f"  {number}. {error}" for number, error in enumerate(self.errors, 1)]
        super().__init__("\n".join(lines))


def shown(value: object, most: int = 80) -> str:
    """The `repr` of a value for messages, shortened in the middle."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most - 20]} ... {text[-14:]}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 error", "3 errors"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[object], most: int = 5, between: str = ", ", total: int | None = None) -> str:
    """The first items of a list, and how many more there are: "a, b and 3 more".

    Args:
        items: all of them, or the first `most` of `total`.
        most: so many are shown.
        between: what separates them.
        total: their number, if `items` are not all.
    """
    left = (len(items) if total is None else total) - most
    return between.join(map(str, items[:most])) + (f" and {left} more" if left > 0 else "")


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The choices that look most like `name`, best first; empty if none is near."""
    return difflib.get_close_matches(name[:200], list(choices), n=count, cutoff=0.55)


def did_you_mean(name: str, choices: Iterable[str], most: int = 12) -> str:
    """A clause for error messages: the nearest choices, or a short list of all if none is near."""
    choices = sorted(set(choices))
    near = nearest(name, choices)
    if near:
        return "did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    if not choices:
        return "there is nothing to choose from."
    shown = ", ".join(choices[:most]) + (f", ... ({len(choices)} in all)" if len(choices) > most else "")
    return f"choose one of: {shown}."
