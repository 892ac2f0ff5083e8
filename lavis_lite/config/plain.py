"""Checks that values of a YAML file or an option are plain.

Plain values are null, true and false, numbers of 64 bits, text, lists, and sections with text as keys. Errors are:

- dates, bytes, paths or sets of typed YAML tags;
- text that cannot be written to a file or a terminal;
- interpolations that cannot be parsed;
- endless nesting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_lite.errors import ConfigError, shown

DEEPEST = 40
"""largest depth of nesting"""


def plain(value: Any, where: str, key: str = "", depth: int = 0, resolved: bool = False) -> Any:
    """The same value, with text as keys.

    Args:
        value: from a YAML reader.
        where: its file or option, for messages.
        key: its dotted key.
        depth: number of sections around it.
        resolved: whether interpolations are resolved, so that "${" is plain text.

    Raises:
        ConfigError: a value is not plain; the message names its key.
    """
    if depth > DEEPEST:
        raise _refused(where, key[:80], f"is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {_key(name, where, key): plain(inner, where, f"{key}.{name}".lstrip("."), depth + 1, resolved)
                for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, where, f"{key}.{position}", depth + 1, resolved) for position, inner in enumerate(value)]
    problem = _problem(value, resolved)
    if problem:
        raise _refused(where, key, problem)
    return value


def _key(name: Any, where: str, parent: str) -> str:
    if not isinstance(name, str | int | float | None):  # YAML reads `1:`, `on:` and `null:` as other than text
        raise _refused(where, parent, f"has the key {shown(name)}, which is not text")
    text = str(name)
    problem = _text_problem(text)
    if problem or "${" in text:
        raise _refused(where, parent, f"has the key {shown(text)}, which {problem or 'has an interpolation in it'}")
    return text


def _problem(value: Any, resolved: bool) -> str:
    """The error of a single value, as the end of a sentence; "" if it is plain."""
    if isinstance(value, str):
        return _text_problem(value) or ("" if resolved else _interpolation_problem(value))
    if isinstance(value, int) and not -2**63 <= value < 2**63:
        return f"is a number of more than 64 bits ({shown(value)})"
    if value is None or type(value) in (bool, int, float):
        return ""
    return f"is a {type(value).__name__}, not a plain value; put it in quotes to make it text"


def _text_problem(text: str) -> str:
    if "\0" in text:
        return "has a null character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "has half of a surrogate pair, which is not a character"
    return ""


def _interpolation_problem(text: str) -> str:
    if "${" not in text:
        return ""
    try:
        OmegaConf.create({"value": text})
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).splitlines()[0][:100]
        return f"is not an interpolation ({reason}): {shown(text)}; write \\${{ for a dollar sign and a brace"
    return ""


def _refused(where: str, key: str, problem: str) -> ConfigError:
    position = f"{where}: {key[:200]}" if key else where
    return ConfigError(f"{position} {problem}.")
